//! Finds out which version the platform runs, from where it may say so (contract section 4).
//!
//! The updater must never go beyond it, and today's servers report none (protocol 3.7), so three answers have to be told
//! apart: a version, an API that answers and reports nothing, and an API that could not be asked. The last is an error:
//! an assumed version may stand in for a silent API, never for one that is away.

use std::time::Duration;

use reqwest::{Client, Response, StatusCode};
use semver::{BuildMetadata, Version};
use serde::Deserialize;
use url::Url;

use crate::exit::Reason;
use crate::http;

/// Longer than any healthy API needs for a constant, shorter than an operator's patience with three of them.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// A version answer is tens of bytes; what is larger is a web page.
const SMALL_ANSWER_BYTES: usize = 64 << 10;
/// The platform's own description is about 0.5 MB.
const OPENAPI_BYTES: usize = 8 << 20;
/// What `/api/openapi.json` says on every server of today, whatever its release.
const OPENAPI_CONSTANT: Version = Version::new(0, 1, 0);
/// Longer texts are not versions.
const MAX_VERSION_CHARS: usize = 64;

/// Where the API may report its version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Made for the question.
    Version,
    /// The probe that load balancers use.
    Health,
    /// The description of the API.
    OpenApi,
}

impl Place {
    /// Contract section 4: "first answer wins".
    const ORDER: [Self; 3] = [Self::Version, Self::Health, Self::OpenApi];

    const fn path(self) -> &'static str {
        match self {
            Self::Version => "/api/v1/version",
            Self::Health => "/health",
            Self::OpenApi => "/api/openapi.json",
        }
    }

    const fn cap(self) -> usize {
        match self {
            Self::Version | Self::Health => SMALL_ANSWER_BYTES,
            Self::OpenApi => OPENAPI_BYTES,
        }
    }

    /// The version in an answer's body, if there is one.
    fn read(self, body: &[u8]) -> Option<Version> {
        match self {
            // 1. `GET {platform_url}/api/v1/version` → `.version`
            // 2. `GET {platform_url}/health` → `.version`
            Self::Version | Self::Health => parse(&serde_json::from_slice::<Versioned>(body).ok()?),
            // 3. `GET {platform_url}/api/openapi.json` → `.info.version`, except the constant `0.1.0`
            Self::OpenApi => parse(&serde_json::from_slice::<OpenApi>(body).ok()?.info)
                .filter(|version| *version != OPENAPI_CONSTANT),
        }
    }
}

/// An object whose `version` may be anything.
#[derive(Deserialize)]
struct Versioned {
    #[serde(default)]
    version: serde_json::Value,
}

/// All that is kept of the API's description.
#[derive(Deserialize)]
struct OpenApi {
    info: Versioned,
}

/// A semantic version with or without `v`; build metadata has no part in precedence and none in a tag.
fn parse(object: &Versioned) -> Option<Version> {
    let text = object.version.as_str()?.trim();
    if text.len() > MAX_VERSION_CHARS {
        return None;
    }
    let mut version = Version::parse(text.strip_prefix('v').unwrap_or(text)).ok()?;
    version.build = BuildMetadata::EMPTY;
    Some(version)
}

/// What an API that could be asked said about its version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiVersion {
    /// It runs this version.
    Reported {
        /// Without build metadata.
        version: Version,
        /// The path that said so.
        at: &'static str,
    },
    /// It answered everywhere and reports none.
    NotReported,
}

/// The API could not be asked for its version.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer, or one that was cut off.
    #[error("cannot ask {url} for the API's version; check platform_url and the network, then try again")]
    Unreachable {
        /// What was asked.
        url: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// An answer that only says that the API is not there at the moment.
    #[error("{url} answered {status} when asked for the API's version; try again when the API is up")]
    Unavailable {
        /// What was asked.
        url: String,
        /// Its answer.
        status: StatusCode,
    },
}

impl Error {
    /// The reason word of an update that stops here.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Unreachable { .. } | Self::Unavailable { .. } => Reason::ApiUnreachable,
        }
    }

    fn is_connect(&self) -> bool {
        matches!(self, Self::Unreachable { source, .. } if source.is_connect())
    }
}

/// One place's answer.
#[derive(Debug)]
enum Answer {
    /// It answered with this.
    Body(Vec<u8>),
    /// It answered that it has nothing to say.
    Silent,
    /// It could not be asked.
    Failed,
}

/// Asks the API at `platform_url` for its version.
///
/// # Errors
/// The API could not be asked, so nothing is known about what it would report.
pub async fn discover(client: &Client, platform_url: &Url) -> Result<ApiVersion, Error> {
    let mut answers = Vec::with_capacity(Place::ORDER.len());
    let mut failure = None;
    for place in Place::ORDER {
        match ask(client, platform_url, place).await {
            Ok(answer) => answers.push(answer),
            // The other places are on the same host.
            Err(error) if error.is_connect() => return Err(error),
            Err(error) => {
                failure.get_or_insert(error);
                answers.push(Answer::Failed);
            }
        }
        if let Some(found @ ApiVersion::Reported { .. }) = decide(&answers) {
            return Ok(found);
        }
    }
    match (decide(&answers), failure) {
        (Some(found), _) => Ok(found),
        (None, Some(error)) => Err(error),
        (None, None) => Ok(ApiVersion::NotReported),
    }
}

/// The first report wins; "not reported" takes the answer of every place. Otherwise nothing can be said yet.
fn decide(answers: &[Answer]) -> Option<ApiVersion> {
    for (place, answer) in Place::ORDER.into_iter().zip(answers) {
        if let Answer::Body(body) = answer
            && let Some(version) = place.read(body)
        {
            return Some(ApiVersion::Reported { version, at: place.path() });
        }
    }
    let all_answered =
        answers.len() == Place::ORDER.len() && !answers.iter().any(|answer| matches!(answer, Answer::Failed));
    all_answered.then_some(ApiVersion::NotReported)
}

async fn ask(client: &Client, platform_url: &Url, place: Place) -> Result<Answer, Error> {
    let address = format!("{}{}", platform_url.as_str().trim_end_matches('/'), place.path());
    let url = format!("{}{}", http::shown(platform_url).trim_end_matches('/'), place.path());
    let unreachable = |source| Error::Unreachable { url: url.clone(), source };
    let request = client.get(address).header("accept", "application/json").timeout(ASK_TIMEOUT);
    let response = request.send().await.map_err(unreachable)?;
    let status = response.status();
    // An ingress in front of an API that is away answers for it; that is no word about the version.
    if status.is_server_error() || matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT) {
        return Err(Error::Unavailable { url, status });
    }
    if !status.is_success() {
        return Ok(Answer::Silent);
    }
    Ok(body(response, place.cap()).await.map_err(unreachable)?.map_or(Answer::Silent, Answer::Body))
}

/// The body, unless it is larger than `cap` bytes.
async fn body(mut response: Response, cap: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len().saturating_add(chunk.len()) > cap {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// The API's version after the operator's assumption has been taken into account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The version, if one is known. Unknown means: refuse (contract section 4, "Never guess").
    pub version: Option<Version>,
    /// Where it comes from, for people: a path of the API, or `assume_api_version`.
    pub origin: Option<&'static str>,
    /// A sentence for the operator where the assumption contradicts the report.
    pub warning: Option<String>,
}

/// Joins what the API reports with `update.assume_api_version` or `--assume-api-version`.
///
/// 4. "these, when given, override 1–3 only if 1–3 report nothing; a report always wins, and a conflict is a warning"
#[must_use]
pub fn settle(found: ApiVersion, assumed: Option<&Version>) -> Settled {
    match (found, assumed) {
        (ApiVersion::Reported { version, at }, assumed) => {
            let conflict = assumed.filter(|assumed| version.cmp_precedence(assumed).is_ne());
            let warning = conflict.map(|assumed| {
                format!("the API reports version {version}, so the assumed version {assumed} is ignored: remove assume_api_version")
            });
            Settled { version: Some(version), origin: Some(at), warning }
        }
        (ApiVersion::NotReported, Some(assumed)) => {
            Settled { version: Some(assumed.clone()), origin: Some("assume_api_version"), warning: None }
        }
        (ApiVersion::NotReported, None) => Settled { version: None, origin: None, warning: None },
    }
}

/// A sentence for `status`, `update --check` and the log where the installed agent is newer than the API, as after
/// somebody rolled the API back (contract section 4, "Which version").
#[must_use]
pub fn ahead_of_api(installed: &Version, api: &Version) -> Option<String> {
    installed.cmp_precedence(api).is_gt().then(|| {
        format!(
            "the installed agent {installed} is newer than the API, which runs {api}: \
             `sudo bamf-agent update --allow-downgrade` steps down to the API's version"
        )
    })
}

#[cfg(test)]
mod tests;
