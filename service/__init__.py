"""Tollseal service: the paid endpoint. It may import `attestation`, never the other way round."""
