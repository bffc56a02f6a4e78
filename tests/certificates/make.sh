#!/bin/sh
# Makes these certificates and keys anew. They protect nothing: tests show them to collectors of their own.
set -eu
cd "$(dirname "$0")"

authority() { # FILE NAME
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -out "$1.pem" \
        -days 36500 -subj "/CN=$2" -addext keyUsage=critical,keyCertSign,cRLSign
}

signed() { # FILE NAME EXTENSIONS
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout "$1.key" -subj "/CN=$2" -out "$1.csr"
    printf '%s\n' "basicConstraints=critical,CA:FALSE" "keyUsage=critical,digitalSignature" "$3" > extensions
    openssl x509 -req -in "$1.csr" -CA authority.pem -CAkey authority.key -CAcreateserial -days 36500 \
        -extfile extensions -out "$1.pem"
}

authority authority "StreamBus tests"
authority stranger "Somebody else"
signed collector "collector" "$(printf 'extendedKeyUsage=serverAuth\nsubjectAltName=DNS:localhost')"
signed broker "broker" "extendedKeyUsage=clientAuth"
# Nothing more is signed.
rm -f authority.key stranger.key ./*.csr ./*.srl extensions
