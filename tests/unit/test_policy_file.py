"""A policy file says exactly what is demanded; a word that is not understood is an error, never a hole."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestation.errors import MalformedError
from attestation.evidence.appraisal import EvidencePolicy
from attestation.onchain import AgentReference
from attestation.policy import Policy
from attestation.policy_file import dump_policy, load_policy

hexes = st.binary(min_size=1, max_size=48).map(bytes.hex)
digests = st.binary(min_size=32, max_size=32).map(lambda data: f"sha256:{data.hex()}")
names = st.from_regex(r"[a-z0-9_]{1,12}", fullmatch=True)
addresses = st.binary(min_size=20, max_size=20).map(lambda data: f"0x{data.hex()}")
registers = st.dictionaries(names, hexes, min_size=1, max_size=4)

policies = st.builds(
    Policy,
    allow_simulated=st.booleans(),
    tee_types=st.none() | st.frozensets(names, max_size=3),
    evidence=st.builds(
        EvidencePolicy,
        measurements=st.none()
        | st.dictionaries(names, st.lists(registers, min_size=1, max_size=3).map(tuple), min_size=1, max_size=3),
        tcb_statuses=st.frozensets(st.text(max_size=12), max_size=3),
        tolerated_advisories=st.frozensets(st.text(max_size=12), max_size=3),
        minimum_tcb_evaluation=st.none() | st.integers(0, 100),
        maximum_vmpl=st.integers(0, 3),
        denied=st.frozensets(hexes, max_size=3),
    ),
    manifest_digests=st.none() | st.frozensets(digests, max_size=3),
    denied=st.frozensets(digests, max_size=3),
    agent=st.none() | st.builds(AgentReference, st.integers(1, 10**9), addresses, st.integers(0, 10**9)),
    owner=st.none() | addresses,
    max_keyset_lifetime_seconds=st.integers(1, 10**9),
    max_report_age_seconds=st.integers(1, 10**6),
    optional=st.sampled_from([Policy().optional, Policy().optional - {"channel.tls"}, frozenset[str]()]),
    collateral_url=st.none() | st.just("https://pccs.example"),
)


@given(policies)
def test_a_policy_is_read_back_as_it_was_written(policy: Policy) -> None:
    assert load_policy(dump_policy(policy, comment="one\ntwo")) == policy


def test_a_policy_that_demands_everything_is_read_back_as_it_was_written() -> None:
    policy = Policy(
        allow_simulated=True,
        tee_types=frozenset({"tdx", "nitro"}),
        evidence=EvidencePolicy(
            measurements={"tdx": ({"mrtd": "aa"}, {"mrtd": "bb", "rtmr0": "cc"})}, minimum_tcb_evaluation=17
        ),
        manifest_digests=frozenset({f"sha256:{'1' * 64}"}),
        agent=AgentReference(84532, "0x" + "8a" * 20, 7),
        owner="0x" + "0a" * 20,
        optional=frozenset(),
        collateral_url="https://pccs.example",
    )
    text = dump_policy(policy, comment="one\ntwo")
    assert text.startswith("# one\n# two\n")
    assert load_policy(text) == policy


def test_an_empty_file_is_the_strict_default() -> None:
    assert load_policy("") == Policy()
    assert load_policy(dump_policy(Policy(), comment="strict")) == Policy()


def test_a_file_for_people_is_understood() -> None:
    policy = load_policy(
        f"""
        tee = ["tdx"]
        manifests = ["sha256:{"1" * 64}"]
        [tcb]
        statuses = ["UpToDate", "SWHardeningNeeded"]
        [[measurements.tdx]]
        mrtd = "aa"
        rtmr0 = "bb"
        [agent]
        owner = "0x{"AB" * 20}"
        [checks]
        required = ["channel.tls"]
        """
    )
    assert policy.tee_types == frozenset({"tdx"})
    assert policy.evidence.measurements == {"tdx": ({"mrtd": "aa", "rtmr0": "bb"},)}
    assert policy.owner == "0x" + "ab" * 20
    assert policy == replace(policy, optional=Policy().optional - {"channel.tls"})


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("tees = ['tdx']", "tees"),
        ("[tbc]\nstatuses = []", "tbc"),
        ("[tcb]\nstatus = []", "status"),
        ("tee = 'tdx'", "tee"),
        ("tee = [1]", "tee"),
        ("manifests = ['abc']", "manifests"),
        ("manifests = ['sha256:ABC']", "manifests"),
        ("allow_simulated = 1", "allow_simulated"),
        ("[measurements]\ntdx = []", "measurements.tdx"),
        ("[measurements]\ntdx = 'aa'", "measurements.tdx"),
        ("[[measurements.tdx]]", "measurements.tdx"),
        ("[[measurements.tdx]]\nmrtd = 'AA'", "mrtd"),
        ("[[measurements.tdx]]\nmrtd = 1", "mrtd"),
        ("[[measurements.tdx]]\n\"MR TD\" = 'aa'", "MR TD"),
        ("[agent]\nreference = 'agent 1'", "agent"),
        ("[agent]\nowner = '0x1'", "owner"),
        ("[keyset]\nmax_lifetime_seconds = 0", "max_lifetime_seconds"),
        ("[report]\nmax_age_seconds = -1", "max_age_seconds"),
        ("[tcb]\nmaximum_vmpl = true", "maximum_vmpl"),
        ("[collateral]\nurl = 1", "url"),
        ("tee = [", "TOML"),
    ],
)
def test_what_is_not_understood_is_named(text: str, where: str) -> None:
    with pytest.raises(MalformedError, match=where):
        load_policy(text)


@given(st.text(max_size=60))
def test_no_text_makes_reading_fail_in_another_way(text: str) -> None:
    try:
        load_policy(text)
    except MalformedError:
        return
