#!/bin/sh
# A merchant's client of Cellpay with nothing but openssl (3.0 or newer), curl and coreutils.
#
#   export CELLPAY_URL=https://pay.example.com MERCHANT=shop KEY_ID=key_… PRIVATE_KEY=private.pem
#   export TLS_CA=ca.pem TLS_CERT=client.pem TLS_KEY=client.key
#   ALGORITHM=rsa-pss-sha256            (or rsa-v1_5-sha256, ed25519, sm2-sm3)
#   curl.sh POST /v1/users/ann/orders '{"merchant_id": "shop", …, "idempotency_key": "order-17"}'
#   curl.sh proof                       (what is needed to register the key)
#
# Prints the answer when it is Cellpay's, and fails when it is not. The form: docs/signing.md.
set -eu
umask 077
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: "${ALGORITHM:=rsa-pss-sha256}"

digest() { # of a file, by the hash of the algorithm $1
  case $1 in
    sm2-sm3) openssl dgst -sm3 -r "$2" | cut -d ' ' -f 1 ;;
    *) openssl dgst -sha256 -r "$2" | cut -d ' ' -f 1 ;;
  esac
}

sign() { # a file, with our key
  case $ALGORITHM in
    rsa-pss-sha256)
      openssl dgst -sha256 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:32 \
        -sign "$PRIVATE_KEY" "$1" ;;
    rsa-v1_5-sha256) openssl dgst -sha256 -sign "$PRIVATE_KEY" "$1" ;;
    sm2-sm3) openssl dgst -sm3 -sigopt distid:1234567812345678 -sign "$PRIVATE_KEY" "$1" ;;
    ed25519) openssl pkeyutl -sign -rawin -inkey "$PRIVATE_KEY" -in "$1" ;;
  esac | base64 -w 0
}

verified() { # algorithm, public key in PEM, signature, file
  case $1 in
    sm2-sm3)
      openssl dgst -sm3 -sigopt distid:1234567812345678 -verify "$2" -signature "$3" "$4" ;;
    ed25519) openssl pkeyutl -verify -rawin -pubin -inkey "$2" -sigfile "$3" -in "$4" ;;
    *) false ;;
  esac >/dev/null
}

send() { # method, target, file of the body, nonce → $work/headers, $work/answer, status
  now=$(date +%s)
  type=''
  [ ! -s "$3" ] || type=application/json
  host=${CELLPAY_URL#https://}
  lower=$(printf %s "$host" | tr 'A-Z' 'a-z')
  printf '%s\n' CELLPAY1 "$ALGORITHM" "$KEY_ID" "$now" "$4" "$1" "$lower" "$2" "$type" '' \
    "$(digest "$ALGORITHM" "$3")" >"$work/lines"
  signature=$(sign "$work/lines")
  printf %s "CELLPAY1 key=\"$KEY_ID\",algorithm=\"$ALGORITHM\",timestamp=\"$now\",nonce=\"$4\",signature=\"$signature\"" \
    >"$work/authorization"
  set -- "$1" "$2" "$3" -H "authorization: $(cat "$work/authorization")"
  if [ -n "$type" ]; then
    set -- "$@" -H "content-type: $type" --data-binary "@$3"
  fi
  method=$1 target=$2
  shift 3
  curl --silent --show-error --path-as-is --max-time 20 --cacert "$TLS_CA" --cert "$TLS_CERT" \
    --key "$TLS_KEY" --request "$method" --dump-header "$work/headers" --output "$work/answer" \
    --write-out '%{http_code}' "$@" "$CELLPAY_URL$target"
}

header() { # of the answer, by name in lower case
  tr -d '\r' <"$work/headers" | sed -n "s/^$1: //Ip" | tail -n 1
}

said() { # a parameter of the answer's signature
  header x-cellpay-signature | sed -n "s/.*[ ,]$1=\"\([^\"]*\)\".*/\1/p"
}

if [ "$1" = proof ]; then
  openssl pkey -in "$PRIVATE_KEY" -pubout -outform DER -out "$work/public"
  printf '%s\n' CELLPAY1-KEY "$ALGORITHM" "$MERCHANT" "$(digest "$ALGORITHM" "$work/public")" \
    >"$work/lines"
  printf '{"merchant_id": "%s", "algorithm": "%s", "public_key": "%s", "proof": "%s"}\n' \
    "$MERCHANT" "$ALGORITHM" "$(base64 -w 0 <"$work/public")" "$(sign "$work/lines")"
  exit
fi

printf %s "${3-}" >"$work/body"
nonce=$(openssl rand -hex 24)
status=$(send "$1" "$2" "$work/body" "$nonce")
cp "$work/answer" "$work/wanted"
printf '%s\n' CELLPAY1-RESPONSE "$(said algorithm)" "$(said key)" "$(said timestamp)" \
  "$(said nonce)" "$(digest "$(said algorithm)" "$work/authorization")" "$status" "$(header content-type)" \
  "$(digest "$(said algorithm)" "$work/wanted")" >"$work/signed"
said signature | base64 -d >"$work/signature"
theirs=$(said key) algorithm=$(said algorithm)

# Cellpay's public keys; keep and pin them if you can.
: >"$work/nothing"
send GET "/v1/users/$MERCHANT/signing-keys" "$work/nothing" "$(openssl rand -hex 24)" >/dev/null
tr '{}' '\n\n' <"$work/answer" | grep -F "\"$theirs\"" |
  sed 's/.*"public_key":"\([^"]*\)".*/\1/' | base64 -d >"$work/their.der"
openssl pkey -pubin -inform DER -in "$work/their.der" -out "$work/their.pem"
verified "$algorithm" "$work/their.pem" "$work/signature" "$work/signed" || {
  echo "the answer ($status) is not Cellpay's" >&2
  exit 2
}
cat "$work/wanted"
echo
[ "$status" = 200 ]
