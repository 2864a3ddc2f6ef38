//! Why a token is not good, in Envoy's words.

use http::StatusCode;

macro_rules! statuses {
    ($($name:ident $text:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Status { $($name,)* }

        impl Status {
            pub(super) fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

statuses! {
    Missing "Jwt is missing";
    NotYetValid "Jwt not yet valid";
    Expired "Jwt is expired";
    BadFormat "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections";
    HeaderBase64 "Jwt header is an invalid Base64url encoded";
    HeaderJson "Jwt header is an invalid JSON";
    HeaderAlgorithm "Jwt header [alg] field is required and must be a string";
    AlgorithmUnknown "Jwt header [alg] is not supported";
    HeaderKeyId "Jwt header [kid] field is not a string";
    PayloadBase64 "Jwt payload is an invalid Base64url encoded";
    PayloadJson "Jwt payload is an invalid JSON";
    PayloadIssuer "Jwt payload [iss] field is not a string";
    PayloadSubject "Jwt payload [sub] field is not a string";
    PayloadIssuedAt "Jwt payload [iat] field is not an integer";
    PayloadNotBefore "Jwt payload [nbf] field is not an integer";
    PayloadExpires "Jwt payload [exp] field is not an integer";
    PayloadAudience "Jwt payload [aud] field is not a string or a string list";
    SignatureBase64 "Jwt signature is an invalid Base64url encoded";
    UnknownIssuer "Jwt issuer is not configured";
    AudienceNotAllowed "Audiences in Jwt are not allowed";
    SubjectNotAllowed "Jwt subject is not allowed";
    NoExpiration "Jwt has no expiration";
    LivesTooLong "Jwt lifetime is too long";
    VerificationFails "Jwt verification fails";
    KeyMismatch "Jwks doesn't have key to match kid or alg from Jwt";
    JwksParse "Jwks is an invalid JSON";
    JwksNoKeys "Jwks does not have [keys] field";
    JwksNoValidKeys "Jwks doesn't have any valid public key";
    JwksFetch "Jwks remote fetch is failed";
}

impl Status {
    pub(super) fn code(self) -> StatusCode {
        if self == Self::AudienceNotAllowed { StatusCode::FORBIDDEN } else { StatusCode::UNAUTHORIZED }
    }
}
