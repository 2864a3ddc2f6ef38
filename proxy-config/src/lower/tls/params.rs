//! `TlsParameters`: versions, cipher suites, curves and signature algorithms by the names that BoringSSL has for them.
//!
//! What BoringSSL knows and rustls cannot do is dropped with a warning, as long as something is left; what neither
//! knows is an error.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3 as pb;
use pb::tls_parameters::TlsProtocol;

use crate::lower::registry::registry;
use crate::lower::{Cx, Side};
use crate::model::tls::{CipherSuite, Curve, TlsParams, TlsVersion};

registry! { pb::TlsParameters }

const SUITES: &str = "cipher_suites";

lower! { "envoy.extensions.transport_sockets.tls.v3.TlsParameters" pb::TlsParameters => TlsParams, cx;
    read {
        tls_minimum_protocol_version, tls_maximum_protocol_version, cipher_suites, ecdh_curves, signature_algorithms
    }
    reject { compliance_policies: "compliance policies are not implemented: list what is allowed" }
    {
        let minimum = cx.variant("tls_minimum_protocol_version", tls_minimum_protocol_version)?;
        let maximum = cx.variant("tls_maximum_protocol_version", tls_maximum_protocol_version)?;
        let (minimum, maximum) = versions(cx, minimum, maximum)?;
        Some(TlsParams {
            minimum,
            maximum,
            cipher_suites: chosen(cx, SUITES, &cipher_suites, cipher_suite),
            curves: chosen(cx, "ecdh_curves", &ecdh_curves, curve),
            signature_algorithms: chosen(cx, "signature_algorithms", &signature_algorithms, signature_algorithm),
        })
    }
}

/// As Envoy 1.40 has it, a client that is not told otherwise stops at 1.2.
fn versions(cx: &mut Cx, minimum: TlsProtocol, maximum: TlsProtocol) -> Option<(TlsVersion, TlsVersion)> {
    let (lowest, highest) = ("tls_minimum_protocol_version", "tls_maximum_protocol_version");
    let minimum = match minimum {
        TlsProtocol::TlsAuto | TlsProtocol::TlSv12 => TlsVersion::V1_2,
        TlsProtocol::TlSv13 => TlsVersion::V1_3,
        TlsProtocol::TlSv10 | TlsProtocol::TlSv11 => {
            let name = minimum.as_str_name();
            cx.warn(lowest, format!("{name} is not implemented: TLSv1_2 is the oldest that is spoken"));
            TlsVersion::V1_2
        }
    };
    let maximum = match (maximum, cx.side) {
        (TlsProtocol::TlsAuto, Some(Side::Upstream)) => TlsVersion::V1_2,
        (TlsProtocol::TlsAuto, Some(Side::Downstream) | None) => TlsVersion::V1_3,
        (TlsProtocol::TlSv12, _) => TlsVersion::V1_2,
        (TlsProtocol::TlSv13, _) => TlsVersion::V1_3,
        (TlsProtocol::TlSv10 | TlsProtocol::TlSv11, _) => {
            cx.reject(highest, "is older than TLSv1_2, the oldest that is spoken");
            return None;
        }
    };
    if minimum > maximum {
        cx.reject(
            lowest,
            "is above tls_maximum_protocol_version, which is TLSv1_2 in an upstream context by default",
        );
        return None;
    }
    Some((minimum, maximum))
}

/// What becomes of a name.
enum Known<T> {
    Here(T),
    /// BoringSSL has it, and rustls has not.
    Elsewhere,
    /// It is allowed here, and without effect.
    Idle,
    /// Nobody has it.
    Nowhere,
}

/// Each list is one that BoringSSL takes apart at colons: an element may have several names. A suite may be said
/// twice, and is taken once; of the others Envoy refuses that.
fn chosen<T: PartialEq>(
    cx: &mut Cx,
    field: &'static str,
    given: &[String],
    parse: fn(&str) -> Known<T>,
) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    let mut unknown = false;
    // Suites of equal preference stand in brackets. rustls has no such groups: the first in them is preferred.
    let separators: &[char] = if field == SUITES { &[':', '[', ']', '|'] } else { &[':'] };
    for (index, text) in given.iter().enumerate() {
        if field == SUITES && !has_whole_groups(text) {
            unknown = true;
            cx.field(field, |cx| cx.index(index, |cx| cx.reject_here("its brackets do not fit together")));
        }
        for name in text.split(separators).filter(|name| !name.is_empty()) {
            match parse(name) {
                Known::Here(value) if kept.contains(&value) => {
                    if field != SUITES {
                        cx.field(field, |cx| {
                            cx.index(index, |cx| cx.reject_here(format!("{name} is given twice")))
                        });
                    }
                }
                Known::Here(value) => kept.push(value),
                Known::Elsewhere => {
                    let why = format!("{name} is not implemented: it is left out");
                    cx.field(field, |cx| cx.index(index, |cx| cx.warn_here(why)));
                }
                Known::Idle => {
                    let why = format!("{name} has no effect: the suites of TLSv1_3 are not chosen here");
                    cx.field(field, |cx| cx.index(index, |cx| cx.warn_here(why)));
                }
                Known::Nowhere => {
                    unknown = true;
                    cx.field(field, |cx| {
                        cx.index(index, |cx| cx.reject_here(format!("\"{name}\" is not known")))
                    });
                }
            }
        }
    }
    if kept.is_empty() && given.iter().any(|text| !text.is_empty()) && !unknown {
        cx.reject(field, "has nothing that is implemented");
    }
    kept
}

fn has_whole_groups(text: &str) -> bool {
    let mut within = false;
    for character in text.chars() {
        let fits = match character {
            '[' => !within,
            ']' | '|' => within,
            ':' => !within,
            _ => true,
        };
        if !fits {
            return false;
        }
        within = match character {
            '[' => true,
            ']' => false,
            _ => within,
        };
    }
    !within
}

/// By OpenSSL's name and by that of the standard.
#[rustfmt::skip]
const CIPHER_SUITES: &[(&str, &str, Option<CipherSuite>)] = &[
    ("ECDHE-ECDSA-AES128-GCM-SHA256", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", Some(CipherSuite::EcdheEcdsaAes128GcmSha256)),
    ("ECDHE-RSA-AES128-GCM-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", Some(CipherSuite::EcdheRsaAes128GcmSha256)),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", Some(CipherSuite::EcdheEcdsaAes256GcmSha384)),
    ("ECDHE-RSA-AES256-GCM-SHA384", "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", Some(CipherSuite::EcdheRsaAes256GcmSha384)),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", Some(CipherSuite::EcdheEcdsaChacha20Poly1305)),
    ("ECDHE-RSA-CHACHA20-POLY1305", "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", Some(CipherSuite::EcdheRsaChacha20Poly1305)),
    ("AES128-GCM-SHA256", "TLS_RSA_WITH_AES_128_GCM_SHA256", None),
    ("AES256-GCM-SHA384", "TLS_RSA_WITH_AES_256_GCM_SHA384", None),
    ("AES128-SHA", "TLS_RSA_WITH_AES_128_CBC_SHA", None),
    ("AES256-SHA", "TLS_RSA_WITH_AES_256_CBC_SHA", None),
    ("DES-CBC3-SHA", "TLS_RSA_WITH_3DES_EDE_CBC_SHA", None),
    ("ECDHE-ECDSA-AES128-SHA", "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", None),
    ("ECDHE-ECDSA-AES256-SHA", "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", None),
    ("ECDHE-RSA-AES128-SHA", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", None),
    ("ECDHE-RSA-AES256-SHA", "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", None),
    ("ECDHE-RSA-AES128-SHA256", "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", None),
    ("PSK-AES128-CBC-SHA", "TLS_PSK_WITH_AES_128_CBC_SHA", None),
    ("PSK-AES256-CBC-SHA", "TLS_PSK_WITH_AES_256_CBC_SHA", None),
    ("ECDHE-PSK-AES128-CBC-SHA", "TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA", None),
    ("ECDHE-PSK-AES256-CBC-SHA", "TLS_ECDHE_PSK_WITH_AES_256_CBC_SHA", None),
    ("ECDHE-PSK-CHACHA20-POLY1305", "TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256", None),
];

const TLS_1_3_SUITES: &[&str] =
    &["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

fn cipher_suite(name: &str) -> Known<CipherSuite> {
    let known = CIPHER_SUITES.iter().find(|(openssl, standard, _)| name == *openssl || name == *standard);
    match known {
        Some((_, _, Some(suite))) => Known::Here(*suite),
        Some((_, _, None)) => Known::Elsewhere,
        None if TLS_1_3_SUITES.contains(&name) => Known::Idle,
        None => Known::Nowhere,
    }
}

fn curve(name: &str) -> Known<Curve> {
    match name {
        "X25519" | "x25519" => Known::Here(Curve::X25519),
        "P-256" | "prime256v1" => Known::Here(Curve::P256),
        "P-384" | "secp384r1" => Known::Here(Curve::P384),
        "P-521" | "secp521r1" | "X25519MLKEM768" | "MLKEM1024" => Known::Elsewhere,
        _ => Known::Nowhere,
    }
}

/// Under the name of the standard; the other is that of OpenSSL's tools.
#[rustfmt::skip]
const SIGNATURE_ALGORITHMS: &[(&str, &[&str], bool)] = &[
    ("ecdsa_secp256r1_sha256", &["ECDSA+SHA256"], true),
    ("ecdsa_secp384r1_sha384", &["ECDSA+SHA384"], true),
    ("ecdsa_secp521r1_sha512", &["ECDSA+SHA512"], false),
    ("ecdsa_sha1", &["ECDSA+SHA1"], false),
    ("ed25519", &[], true),
    ("rsa_pkcs1_sha256", &["RSA+SHA256"], true),
    ("rsa_pkcs1_sha384", &["RSA+SHA384"], true),
    ("rsa_pkcs1_sha512", &["RSA+SHA512"], true),
    ("rsa_pkcs1_sha1", &["RSA+SHA1"], false),
    ("rsa_pkcs1_sha256_legacy", &[], false),
    ("rsa_pss_rsae_sha256", &["PSS+SHA256", "RSA-PSS+SHA256"], true),
    ("rsa_pss_rsae_sha384", &["PSS+SHA384", "RSA-PSS+SHA384"], true),
    ("rsa_pss_rsae_sha512", &["PSS+SHA512", "RSA-PSS+SHA512"], true),
];

fn signature_algorithm(name: &str) -> Known<Arc<str>> {
    match SIGNATURE_ALGORITHMS.iter().find(|(plain, others, _)| *plain == name || others.contains(&name)) {
        Some((plain, _, true)) => Known::Here((*plain).into()),
        Some((_, _, false)) => Known::Elsewhere,
        None => Known::Nowhere,
    }
}
