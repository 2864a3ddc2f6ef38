//! Tokens of keys that are made here; those of RSA are by OpenSSL.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use proxy_config::model::http::Content;
use proxy_config::model::http::jwt::{ClaimToHeader, JwksSource, JwtCache, JwtHeader, JwtProvider, JwtRule};
use proxy_config::model::http::{FilterKind, PathMatch, PerRoute, RouteMatch};
use proxy_config::model::metadata::Value;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::{Value as Json, json};

use super::*;
use crate::http::testing::{Rig, Sent, any_route, respond, route_with};

const RSA: &str = r#"{"keys": [{"kty": "RSA", "kid": "rsa", "e": "AQAB", "n": "seI6taKSSka43VxqQfEpf171SLa0n3UQmEvnMyzvuX9HSmL_VatQ9bDWdatxEYR3Gp7w2xJDhu9aoCthznM-rYsfrWFdj2yapx-_ynPcDOphGsgd1FdUH9aSI3hHuJHHGuEvnEgnmhvVo50_YvCuZeFmjpYFaPVMX8dAKme7iMT86uS5NHnqusNU6eY-uAXWy7y4fBqp3slo7mZv8wQjokt5ha-s9xF3P6v7CVeBiImQX5uVZEvK3rEGbA1ELzrnWn8dQCmdgHFLF4GFDdwAKaoLrPI0OzCVMMuiHMPEN9KXet9hXNxGIUwFM91uHQ83knPGK2dP14uQcTS_NjqIAQ"}]}"#;
const RS256: &str = "eyJhbGciOiJSUzI1NiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJyc2EiLCJzdWIiOiJzIn0.Z1MZoH1yGOyVgSZT15R5wKK6qQ9qC81O3nHSIZG5GkdThKNvgR8hlX5N34GvZ_Q9O649_b0VY-fRcmYtpQ3Ag6sA0_eweEVxYMYZWXmYOZsYYhg6DBZDxC2ykjvJG0_NQaTZlYb7w4zygY67pqHSRWS75YmrJZ3d01EaB5yEDviED4IZvFfD4IThbo27fpOm0RYAgEBRGq6d9_lMA_eVrl7Ys-rkTfU_FWJ8Q5Y0NL4dF34BhTjrN3Q3CNfaPtg_KZKQq3i2ziaXLABWMQAVtF3mJX9q5pFfPPfccKhwnoJyZP-9Bg7xsfw7W8a-YYdRZEL-yLVPgXjp8mAafgwpjA";
const PS256: &str = "eyJhbGciOiJQUzI1NiIsImtpZCI6InJzYSJ9.eyJpc3MiOiJyc2EiLCJzdWIiOiJzIn0.AwMtox-9VPDk4_KiyEUZDHahxw1kEmeg8MaZO_8b0ZBRsUTAQRFTvuvK19DimKjPsx0Y6HoEahAFlY-LgaxTFLJRtWEcNBLV2YFvNuBtNrjksucgAMzgKcwch-ajsOyMSYS_bIsx8_D9wcrjqRujjIMqEkNBSp0su9V0pPmgWAYNTzhHU93Qpk8PVTm6F3yNBRgO7-yEkq2Za8cSCWfFzKtW4LUxMSt3UrkIA77xWrqn29ZFwcszC-9SN2j3sf-tSmI6tJOINTc8MCvtfoh9iDV7wAPmj4Qx5ImJzdiT3Rpc07OCkw0WDc_wIIkl8Hd2MElGGszAqwrQtN7CS9o9hQ";

struct Signer {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

impl Signer {
    fn new() -> Self {
        let random = SystemRandom::new();
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref(), &random).unwrap();
        Self { pair, random }
    }

    fn keys(&self) -> String {
        let point = self.pair.public_key().as_ref();
        let coordinate = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let (x, y) = (coordinate(&point[1..33]), coordinate(&point[33..]));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": "one", "x": x, "y": y}]}).to_string()
    }

    fn token(&self, claims: &Json) -> String {
        let part = |json: &Json| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": "ES256", "kid": "one"})), part(claims));
        let signature = self.pair.sign(&self.random, signed.as_bytes()).unwrap();
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
    }
}

fn provider(issuer: &str, keys: &str) -> JwtProvider {
    JwtProvider {
        issuer: issuer.into(),
        audiences: vec!["me".into()],
        subjects: None,
        require_expiration: false,
        max_lifetime: None,
        keys: JwksSource::Local(Content::inline(keys)),
        forward: false,
        from_headers: Vec::new(),
        from_params: Vec::new(),
        from_cookies: Vec::new(),
        forward_payload_header: Some("x-payload".into()),
        pad_forward_payload_header: false,
        payload_in_metadata: Some("payload".into()),
        header_in_metadata: None,
        failed_status_in_metadata: Some("failed".into()),
        space_delimited_claims: vec!["scope".into()],
        clock_skew: Duration::from_secs(60),
        cache: Some(JwtCache { size: 2, max_token_size: 4_096 }),
        claim_to_headers: vec![ClaimToHeader {
            header: "x-deep".into(),
            claim: vec!["a".into(), "b".into()],
        }],
        clear_route_cache: false,
    }
}

fn rule(prefix: &str, requires: Option<JwtRequirement>) -> JwtRule {
    let matcher = RouteMatch {
        path: PathMatch::Prefix(prefix.into()),
        case_sensitive: true,
        runtime_fraction: None,
        headers: Vec::new(),
        query_parameters: Vec::new(),
        cookies: Vec::new(),
        grpc: false,
        tls_context: None,
        dynamic_metadata: Vec::new(),
        filter_state: Vec::new(),
    };
    JwtRule { matcher, requires }
}

fn of(name: &str) -> JwtRequirement {
    JwtRequirement::Provider { name: name.into(), audiences: None }
}

fn filter(providers: Vec<(&str, JwtProvider)>, requires: JwtRequirement) -> FilterKind {
    FilterKind::JwtAuthn(Box::new(Model {
        providers: providers.into_iter().map(|(name, provider)| (name.into(), provider)).collect(),
        rules: vec![rule("/free", None), rule("/", Some(requires))],
        filter_state_rules: None,
        bypass_cors_preflight: true,
        requirements: [("known".into(), of("p"))].into(),
        strip_failure_response: false,
        stat_prefix: "".into(),
    }))
}

async fn ask(rig: &Rig, stream: &mut Stream) -> Sent {
    rig.exchange(stream, |stream| respond(stream, 200, &[], "upstream")).await.unwrap()
}

fn now() -> u64 {
    crate::clock::wall().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test]
async fn tokens() {
    let (signer, other) = (Signer::new(), Signer::new());
    let rig = Rig::new(vec![("f", filter(vec![("p", provider("i", &signer.keys()))], of("p")))], any_route());
    let good =
        || json!({"iss": "i", "aud": ["you", "https://me/"], "sub": "s", "a": {"b": 7}, "scope": "x y"});
    let with = |name: &str, value: Json| {
        let mut claims = good();
        claims[name] = value;
        signer.token(&claims)
    };
    let torn = signer.token(&good());
    for (token, status, text) in [
        (signer.token(&good()), 200, "upstream"),
        (with("exp", json!(now() - 30)), 200, "upstream"),
        (with("exp", json!(now() - 90)), 401, "Jwt is expired"),
        (with("nbf", json!(now() + 90)), 401, "Jwt not yet valid"),
        (with("iss", json!("j")), 401, "Jwt issuer is not configured"),
        (with("iss", json!(1)), 401, "Jwt payload [iss] field is not a string"),
        (with("aud", json!("you")), 403, "Audiences in Jwt are not allowed"),
        (with("exp", json!("soon")), 401, "Jwt payload [exp] field is not an integer"),
        (other.token(&good()), 401, "Jwt verification fails"),
        (torn[..torn.len() - 2].to_owned(), 401, "Jwt verification fails"),
        ("a.b".to_owned(), 401, Status::BadFormat.text()),
        ("a.b.c".to_owned(), 401, Status::HeaderBase64.text()),
    ] {
        let mut stream = rig.with("/x?y", &[("authorization", &format!("Bearer {token}"))]);
        let sent = ask(&rig, &mut stream).await;
        assert_eq!((sent.status, sent.text()), (status, text), "{token}");
        let headers = &stream.request().headers;
        assert_eq!(headers.contains_key("authorization"), status != 200, "it does not go on");
        if status == 200 {
            assert_eq!(headers.get("x-deep").unwrap(), "7");
            assert_eq!(headers.get("x-payload").unwrap(), token.split('.').nth(1).unwrap());
            let noted = stream.http().dynamic_metadata.of("envoy.filters.http.jwt_authn").unwrap();
            let Some(Value::Struct(payload)) = noted.get("payload") else { panic!("{noted:?}") };
            assert_eq!(payload.get("sub"), Some(&Value::String("s".to_owned())));
            assert!(matches!(payload.get("scope"), Some(Value::List(words)) if words.len() == 2));
        } else {
            let told = sent.header("www-authenticate").unwrap();
            assert_eq!(told, "Bearer realm=\"http://test.example/x?y\", error=\"invalid_token\"");
            let details = stream.entry.outcome.response_code_details.as_deref().unwrap();
            assert_eq!(details, format!("jwt_authn_access_denied{{{}}}", text.replace(' ', "_")));
        }
    }
    let missing = ask(&rig, &mut rig.get("/")).await;
    assert_eq!((missing.status, missing.text()), (401, "Jwt is missing"));
    assert_eq!(missing.header("www-authenticate"), Some("Bearer realm=\"http://test.example/\""));
    assert_eq!(ask(&rig, &mut rig.get("/free")).await.status, 200);
    assert_eq!((rig.stat("http.test.jwt_authn.allowed"), rig.stat("http.test.jwt_authn.denied")), (3, 11));
}

#[tokio::test]
async fn where_tokens_are() {
    let signer = Signer::new();
    let token = signer.token(&json!({"iss": "i", "aud": "me"}));
    let own = JwtProvider {
        from_headers: vec![JwtHeader { name: "x-t".into(), value_prefix: "T ".into() }],
        from_params: vec!["t".into()],
        from_cookies: vec!["c".into()],
        ..provider("i", &signer.keys())
    };
    let rig_of = |provider| Rig::new(vec![("f", filter(vec![("p", provider)], of("p")))], any_route());
    let (usual, own) = (rig_of(provider("i", &signer.keys())), rig_of(own));
    let (bearer, prefixed, cookie) =
        (format!("Bearer {token}"), format!("T {token}"), format!("a=b; c={token}"));
    for (rig, path, headers, status, left) in [
        (&usual, "/", vec![("authorization", &*bearer)], 200, "/"),
        (&usual, &format!("/a?access_token={token}&b=1"), vec![], 200, "/a?b=1"),
        (&usual, &format!("/a?t={token}"), vec![], 401, ""),
        (&own, "/", vec![("x-t", &*prefixed)], 200, "/"),
        (&own, "/", vec![("x-t", &*token)], 401, ""),
        (&own, &format!("/a?t={token}"), vec![], 200, "/a"),
        (&own, "/", vec![("cookie", &*cookie)], 200, "/"),
        (&own, "/", vec![("authorization", &*bearer)], 401, ""),
        // All of them have to be good.
        (&own, "/?t=x", vec![("x-t", &*prefixed)], 401, ""),
    ] {
        let mut stream = rig.with(path, &headers);
        assert_eq!(ask(rig, &mut stream).await.status, status, "{path} {headers:?}");
        assert!(status != 200 || stream.request().path == left, "{}", stream.request().path);
    }
}

#[tokio::test]
async fn requirements() {
    use JwtRequirement::{All, AllowMissing, AllowMissingOrFailed, Any};
    let (one, two) = (Signer::new(), Signer::new());
    let second = JwtProvider {
        from_headers: vec![JwtHeader { name: "x-two".into(), value_prefix: "".into() }],
        ..provider("two", &two.keys())
    };
    let token = |signer: &Signer, issuer: &str| signer.token(&json!({"iss": issuer, "aud": "me"}));
    let (first, second_token) = (format!("Bearer {}", token(&one, "one")), token(&two, "two"));
    let bad = format!("Bearer {}", token(&two, "one"));
    let (a, b, wrong) = (("authorization", &*first), ("x-two", &*second_token), ("authorization", &*bad));
    for (requirement, headers, status) in [
        (Any(vec![of("one"), of("two")]), vec![], 401),
        (Any(vec![of("one"), of("two")]), vec![b], 200),
        (Any(vec![of("one"), of("two")]), vec![wrong], 401),
        (Any(vec![of("one"), AllowMissing]), vec![], 200),
        (Any(vec![of("one"), AllowMissing]), vec![wrong], 401),
        (Any(vec![of("one"), AllowMissingOrFailed]), vec![wrong], 200),
        (All(vec![of("one"), of("two")]), vec![a], 401),
        (All(vec![of("one"), of("two")]), vec![a, b], 200),
        (AllowMissing, vec![], 200),
        (AllowMissing, vec![a], 200),
        (AllowMissing, vec![wrong], 401),
        (AllowMissingOrFailed, vec![wrong], 200),
    ] {
        let what = format!("{requirement:?} {headers:?}");
        let providers = vec![("one", provider("one", &one.keys())), ("two", second.clone())];
        let rig = Rig::new(vec![("f", filter(providers, requirement))], any_route());
        assert_eq!(ask(&rig, &mut rig.with("/", &headers)).await.status, status, "{what}");
    }
}

#[tokio::test]
async fn routes_say_what_is_required() {
    let signer = Signer::new();
    let kind = || filter(vec![("p", provider("i", &signer.keys()))], JwtRequirement::AllowMissing);
    for (said, status) in [
        (JwtPerRoute::Disabled, 200),
        (JwtPerRoute::Requirement("known".into()), 401),
        (JwtPerRoute::Requirement("unknown".into()), 403),
    ] {
        let rig = Rig::new(vec![("f", kind())], route_with(vec![("f", PerRoute::JwtAuthn(said.clone()))]));
        assert_eq!(ask(&rig, &mut rig.get("/")).await.status, status, "{said:?}");
    }
    let rig = Rig::new(vec![("f", filter(vec![("p", provider("i", &signer.keys()))], of("p")))], any_route());
    let preflight = [("origin", "http://a"), ("access-control-request-method", "PUT")];
    let head = crate::http::testing::request(Method::OPTIONS, "/", &preflight);
    assert_eq!(ask(&rig, &mut rig.stream(head, crate::http::Body::empty())).await.status, 200);
}

#[test]
fn signatures() {
    use super::jwks::Keys;
    use super::token::Token;
    let random = SystemRandom::new();
    let pair = Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&random).unwrap().as_ref()).unwrap();
    let x = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    let edwards = json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": x}]}).to_string();
    let part = |json: Json| URL_SAFE_NO_PAD.encode(json.to_string());
    let signed = format!("{}.{}", part(json!({"alg": "EdDSA"})), part(json!({"iss": "e"})));
    let eddsa = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()).as_ref()));
    for (keys, token) in [(RSA, RS256), (RSA, PS256), (&edwards, &eddsa)] {
        let (keys, token) = (Keys::parse(keys.as_bytes()).unwrap(), Token::parse(token).unwrap());
        assert_eq!(keys.verify(&token), Ok(()));
        let mut torn = token;
        torn.signature[7] ^= 1;
        assert_eq!(keys.verify(&torn), Err(Status::VerificationFails));
    }
    let other = Keys::parse(edwards.as_bytes()).unwrap().verify(&Token::parse(RS256).unwrap());
    assert_eq!(other, Err(Status::KeyMismatch), "a key of another kind");
    for (text, status) in [
        ("", Status::JwksParse),
        ("{}", Status::JwksNoKeys),
        (r#"{"keys": []}"#, Status::JwksNoValidKeys),
        (r#"{"keys": [{"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}]}"#, Status::JwksNoValidKeys),
    ] {
        assert_eq!(Keys::parse(text.as_bytes()).unwrap_err(), status, "{text}");
    }
}
