//! Keys: a JSON Web Key Set, read. ring has no P-521, so that there is no ES512.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RSA_PSS_2048_8192_SHA256,
    RSA_PSS_2048_8192_SHA384, RSA_PSS_2048_8192_SHA512, RsaParameters, RsaPublicKeyComponents,
    UnparsedPublicKey, VerificationAlgorithm,
};
use serde_json::Value;

use super::status::Status;
use super::token::Token;

#[derive(Debug)]
pub(super) struct Keys(Vec<Key>);

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// An uncompressed point.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
    Secret(Vec<u8>),
}

impl Keys {
    /// Keys that cannot be used are left out; none at all is an error.
    pub(super) fn parse(text: &[u8]) -> Result<Self, Status> {
        let json: Value = serde_json::from_slice(text).map_err(|_| Status::JwksParse)?;
        let keys = json.get("keys").and_then(Value::as_array).ok_or(Status::JwksNoKeys)?;
        let keys: Vec<Key> = keys.iter().filter_map(Key::read).collect();
        if keys.is_empty() { Err(Status::JwksNoValidKeys) } else { Ok(Self(keys)) }
    }

    pub(super) fn verify(&self, token: &Token) -> Result<(), Status> {
        let mut matched = false;
        for key in &self.0 {
            let other_id = matches!((&key.id, &token.key_id), (Some(one), Some(other)) if one != other);
            let other_algorithm = key.algorithm.as_ref().is_some_and(|own| *own != token.algorithm);
            if other_id || other_algorithm {
                continue;
            }
            if let Some(good) = key.kind.verify(&token.algorithm, token.signed(), &token.signature) {
                if good {
                    return Ok(());
                }
                matched = true;
            }
        }
        Err(if matched { Status::VerificationFails } else { Status::KeyMismatch })
    }
}

impl Key {
    fn read(json: &Value) -> Option<Self> {
        let text = |name: &str| json.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?.trim_end_matches('=')).ok();
        let point = |size: usize| {
            let (x, y) = (bytes("x")?, bytes("y")?);
            (x.len() == size && y.len() == size).then(|| [&[4][..], &x, &y].concat())
        };
        let kind = match (text("kty")?, text("crv")) {
            ("RSA", _) => Kind::Rsa { n: bytes("n")?, e: bytes("e")? },
            ("EC", Some("P-256")) => Kind::P256(point(32)?),
            ("EC", Some("P-384")) => Kind::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Kind::Ed25519(bytes("x")?),
            ("oct", _) => Kind::Secret(bytes("k")?),
            ("EC", Some("P-521")) => {
                log::warn!("jwt_authn: a key of P-521 is passed over: ES512 is not implemented");
                return None;
            }
            _ => return None,
        };
        Some(Self { id: text("kid").map(str::to_owned), algorithm: text("alg").map(str::to_owned), kind })
    }
}

impl Kind {
    /// None: it is no key for that algorithm.
    fn verify(&self, algorithm: &str, signed: &[u8], signature: &[u8]) -> Option<bool> {
        let by = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(signed, signature).is_ok()
        };
        match (self, algorithm) {
            (Self::Rsa { n, e }, algorithm) => {
                let parameters = rsa(algorithm)?;
                Some(RsaPublicKeyComponents { n, e }.verify(parameters, signed, signature).is_ok())
            }
            (Self::P256(point), "ES256") => Some(by(&ECDSA_P256_SHA256_FIXED, point)),
            (Self::P384(point), "ES384") => Some(by(&ECDSA_P384_SHA384_FIXED, point)),
            (Self::Ed25519(key), "EdDSA") => Some(by(&ED25519, key)),
            (Self::Secret(secret), algorithm) => {
                let algorithm = match algorithm {
                    "HS256" => hmac::HMAC_SHA256,
                    "HS384" => hmac::HMAC_SHA384,
                    "HS512" => hmac::HMAC_SHA512,
                    _ => return None,
                };
                Some(hmac::verify(&hmac::Key::new(algorithm, secret), signed, signature).is_ok())
            }
            (Self::P256(_) | Self::P384(_) | Self::Ed25519(_), _) => None,
        }
    }
}

fn rsa(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &RSA_PSS_2048_8192_SHA256,
        "PS384" => &RSA_PSS_2048_8192_SHA384,
        "PS512" => &RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}
