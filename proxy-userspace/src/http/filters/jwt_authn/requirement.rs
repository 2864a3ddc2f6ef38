//! Whether a request has what is required of it.

use std::pin::Pin;
use std::sync::Arc;

use proxy_config::model::http::jwt::JwtRequirement;

use super::Shared;
use super::effects;
use super::find;
use super::status::Status;
use crate::http::Stream;

type Answer<'a> = Pin<Box<dyn Future<Output = Result<(), Status>> + Send + 'a>>;

/// Boxed, as requirements hold each other.
pub(super) fn meets<'a>(
    shared: &'a Shared,
    requirement: &'a JwtRequirement,
    stream: &'a mut Stream,
) -> Answer<'a> {
    Box::pin(async move {
        match requirement {
            JwtRequirement::Provider { name, audiences } => {
                let provider = shared.providers.get(name).ok_or(Status::UnknownIssuer)?;
                let audiences = audiences.as_ref().unwrap_or(&provider.model.audiences);
                provider.check(audiences, stream).await
            }
            JwtRequirement::Any(all) => any(shared, all, stream).await,
            JwtRequirement::All(all) => {
                for one in all {
                    meets(shared, one, stream).await?;
                }
                Ok(())
            }
            JwtRequirement::AllowMissingOrFailed => {
                // What is wrong with a token does not matter; what is good has its effects.
                let _ = every_token(shared, stream).await;
                Ok(())
            }
            JwtRequirement::AllowMissing => match every_token(shared, stream).await {
                Err(Status::Missing) => Ok(()),
                answer => answer,
            },
            JwtRequirement::ExtractOnly { status_header } => {
                effects::extract(shared, status_header.as_ref(), stream);
                Ok(())
            }
        }
    })
}

/// The first that holds; else why the one which says most does not.
async fn any(shared: &Shared, all: &[JwtRequirement], stream: &mut Stream) -> Result<(), Status> {
    let (mut why, mut missing_is_fine, mut all_is_fine) = (Status::Missing, false, false);
    for one in all {
        match one {
            JwtRequirement::AllowMissing => missing_is_fine = true,
            JwtRequirement::AllowMissingOrFailed => all_is_fine = true,
            JwtRequirement::Provider { .. }
            | JwtRequirement::Any(_)
            | JwtRequirement::All(_)
            | JwtRequirement::ExtractOnly { .. } => match meets(shared, one, stream).await {
                Ok(()) => return Ok(()),
                Err(status) if tells_more(status, why) => why = status,
                Err(_) => {}
            },
        }
    }
    let only_lenient = all.iter().all(is_lenient);
    if only_lenient && (missing_is_fine || all_is_fine) {
        let lenient =
            if all_is_fine { JwtRequirement::AllowMissingOrFailed } else { JwtRequirement::AllowMissing };
        return meets(shared, &lenient, stream).await;
    }
    let fine = all_is_fine || (missing_is_fine && matches!(why, Status::Missing));
    if fine { Ok(()) } else { Err(why) }
}

fn is_lenient(requirement: &JwtRequirement) -> bool {
    matches!(requirement, JwtRequirement::AllowMissing | JwtRequirement::AllowMissingOrFailed)
}

/// That there is no token, or one of somebody else, says least.
fn tells_more(status: Status, than: Status) -> bool {
    let little = |status| matches!(status, Status::Missing | Status::UnknownIssuer);
    status != Status::Missing && (than == Status::Missing || !little(status))
}

/// Each token that any provider would find: of the one whose issuer it names.
async fn every_token(shared: &Shared, stream: &mut Stream) -> Result<(), Status> {
    let mut seen = Vec::new();
    for provider in shared.providers.values() {
        for found in find::tokens(&provider.model, stream.request()) {
            if !seen.contains(&found) {
                seen.push(found);
            }
        }
    }
    let mut answer = if seen.is_empty() { Err(Status::Missing) } else { Ok(()) };
    for found in seen {
        let mut why = Err(Status::UnknownIssuer);
        for provider in shared.providers.values() {
            let audiences: &[Arc<str>] = &provider.model.audiences;
            why = provider.verify(&found, audiences, stream).await;
            if why != Err(Status::UnknownIssuer) {
                break;
            }
        }
        answer = answer.and(why);
    }
    answer
}
