// A buyer that knows nothing but the specifications: net/http, x402 v2 with EIP-3009, RFC 9421 and RFC 9530.
//
// stdin: {"url", "body", "key"}: where, the request's exact text, the payer's private key (0x and hex)
// stdout: {"status", "answer", "settlement", "signed"}: signed says that the response signature holds under the key that
// the service publishes
package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	"github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"
	"golang.org/x/crypto/sha3"
)

type order struct {
	URL  string `json:"url"`
	Body string `json:"body"`
	Key  string `json:"key"`
}

type accepted struct {
	Network string            `json:"network"`
	Asset   string            `json:"asset"`
	Amount  string            `json:"amount"`
	PayTo   string            `json:"payTo"`
	Extra   map[string]string `json:"extra"`
}

func main() {
	var given order
	must(json.NewDecoder(os.Stdin).Decode(&given))
	unpaid, _ := post(given, "")
	if unpaid.StatusCode != http.StatusPaymentRequired {
		fail("expected a 402, got %d", unpaid.StatusCode)
	}
	terms := decoded(unpaid.Header.Get("Payment-Required"))
	paid, body := post(given, pay(terms, given.Key))
	result := map[string]any{"status": paid.StatusCode, "answer": string(body)}
	if paid.StatusCode == http.StatusOK {
		result["settlement"] = decoded(paid.Header.Get("Payment-Response"))
		result["signed"] = signed(given, paid, body)
	}
	must(json.NewEncoder(os.Stdout).Encode(result))
}

func post(given order, payment string) (*http.Response, []byte) {
	request, err := http.NewRequest(http.MethodPost, given.URL, strings.NewReader(given.Body))
	must(err)
	request.Header.Set("Content-Type", "application/json")
	if payment != "" {
		request.Header.Set("Payment-Signature", payment)
	}
	response, err := (&http.Client{Timeout: 2 * time.Minute}).Do(request)
	must(err)
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	must(err)
	return response, body
}

// pay signs TransferWithAuthorization (EIP-3009) for the first of the accepted terms; the value of PAYMENT-SIGNATURE.
func pay(terms map[string]any, key string) string {
	list, err := json.Marshal(terms["accepts"].([]any)[0])
	must(err)
	var accept accepted
	must(json.Unmarshal(list, &accept))
	private := secp256k1.PrivKeyFromBytes(unhex(key))
	payer := keccak(private.PubKey().SerializeUncompressed()[1:])[12:]
	nonce := make([]byte, 32)
	_, err = rand.Read(nonce)
	must(err)
	validBefore := big.NewInt(time.Now().Add(10 * time.Minute).Unix())
	value, ok := new(big.Int).SetString(accept.Amount, 10)
	if !ok {
		fail("the amount %q is no number", accept.Amount)
	}
	chain, ok := new(big.Int).SetString(strings.TrimPrefix(accept.Network, "eip155:"), 10)
	if !ok {
		fail("the network %q is no EVM chain", accept.Network)
	}
	domain := keccak(
		keccak([]byte("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")),
		keccak([]byte(accept.Extra["name"])), keccak([]byte(accept.Extra["version"])), word(chain.Bytes()), word(unhex(accept.Asset)),
	)
	message := keccak(
		keccak([]byte("TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)")),
		word(payer), word(unhex(accept.PayTo)), word(value.Bytes()), word(nil), word(validBefore.Bytes()), nonce,
	)
	compact := ecdsa.SignCompact(private, keccak([]byte{0x19, 0x01}, domain, message), false)
	document := map[string]any{
		"x402Version": 2,
		"accepted":    terms["accepts"].([]any)[0],
		"payload": map[string]any{
			"signature": "0x" + hex.EncodeToString(append(compact[1:], compact[0])),
			"authorization": map[string]string{
				"from": "0x" + hex.EncodeToString(payer), "to": accept.PayTo, "value": accept.Amount,
				"validAfter": "0", "validBefore": validBefore.String(), "nonce": "0x" + hex.EncodeToString(nonce),
			},
		},
	}
	text, err := json.Marshal(document)
	must(err)
	return base64.StdEncoding.EncodeToString(text)
}

var input = regexp.MustCompile(`^sig=(\(([^)]*)\);.*keyid="([^"]+)".*)$`)

// signed checks Content-Digest (RFC 9530) and the signature (RFC 9421) under the key that the service's directory lists.
func signed(given order, response *http.Response, body []byte) bool {
	sum := sha256.Sum256(body)
	if response.Header.Get("Content-Digest") != "sha-256=:"+base64.StdEncoding.EncodeToString(sum[:])+":" {
		return false
	}
	match := input.FindStringSubmatch(response.Header.Get("Signature-Input"))
	if match == nil {
		return false
	}
	where, err := url.Parse(given.URL)
	must(err)
	var base bytes.Buffer
	for _, component := range strings.Fields(match[2]) {
		var value string
		switch component {
		case `"@status"`:
			value = fmt.Sprint(response.StatusCode)
		case `"@method";req`:
			value = http.MethodPost
		case `"@authority";req`:
			value = where.Host
		case `"@path";req`:
			value = where.Path
		default:
			value = response.Header.Get(strings.Trim(component, `"`))
		}
		fmt.Fprintf(&base, "%s: %s\n", component, value)
	}
	fmt.Fprintf(&base, `"@signature-params": %s`, match[1])
	text := strings.TrimSuffix(strings.TrimPrefix(response.Header.Get("Signature"), "sig=:"), ":")
	signature, err := base64.StdEncoding.DecodeString(text)
	must(err)
	return ed25519.Verify(key(where, match[3]), base.Bytes(), signature)
}

func key(where *url.URL, id string) ed25519.PublicKey {
	response, err := http.Get(where.Scheme + "://" + where.Host + "/.well-known/http-message-signatures-directory")
	must(err)
	defer response.Body.Close()
	var directory struct {
		Keys []struct{ Kid, X string }
	}
	must(json.NewDecoder(response.Body).Decode(&directory))
	for _, one := range directory.Keys {
		if one.Kid == id {
			public, err := base64.RawURLEncoding.DecodeString(one.X)
			must(err)
			return public
		}
	}
	fail("no key is called %s", id)
	return nil
}

func decoded(header string) map[string]any {
	text, err := base64.StdEncoding.DecodeString(header)
	must(err)
	var document map[string]any
	must(json.Unmarshal(text, &document))
	return document
}

func keccak(parts ...[]byte) []byte {
	hash := sha3.NewLegacyKeccak256()
	for _, part := range parts {
		hash.Write(part)
	}
	return hash.Sum(nil)
}

func word(value []byte) []byte {
	return append(make([]byte, 32-len(value)), value...)
}

func unhex(text string) []byte {
	data, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
	must(err)
	return data
}

func must(err error) {
	if err != nil {
		fail("%v", err)
	}
}

func fail(format string, values ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", values...)
	os.Exit(1)
}
