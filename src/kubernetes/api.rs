//! The three calls to the cluster's API: get, create and replace one Secret.
//!
//! Every call reads the token anew, ends within ten seconds, and reads a bounded answer. Only the API's own words count:
//! a page that says 404 is no Secret that is missing, because what follows from a missing Secret is a join.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Method, StatusCode};
use rustls::ClientConfig;
use serde::Deserialize;
use url::Url;
use zeroize::Zeroizing;

use super::failure::Verb;
use super::object::Object;
use super::{Failure, Place, ServiceAccount};
use crate::config::{KubernetesConfig, NetworkConfig};
use crate::http::{self, Purpose};
use crate::platform::failure::printable;

/// A Secret has at most 1 MiB of data, a third more in base64, and its metadata.
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// The API asks for seconds; nobody should be able to ask for days.
const RETRY_AFTER_CAP: Duration = Duration::from_secs(60);

/// Whether a write counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It does.
    Real,
    /// Everything is checked, permissions too, and nothing is kept (`dryRun=All`).
    Rehearsal,
}

/// One Secret of the cluster around this pod.
#[derive(Debug)]
pub struct Api {
    place: Place,
    account: ServiceAccount,
    host: Option<String>,
    port: u16,
    /// Named in the API's audit log.
    version: String,
    /// What was made of the mounted authority, until that changes.
    client: Mutex<Option<(Arc<ClientConfig>, reqwest::Client)>>,
}

/// An error in the API's own form.
#[derive(Deserialize)]
struct Status {
    kind: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    details: Details,
}

#[derive(Default, Deserialize)]
struct Details {
    #[serde(default)]
    name: String,
}

impl Api {
    /// The Secret that `config` names, through `account`.
    #[must_use]
    pub fn new(config: &KubernetesConfig, account: ServiceAccount, version: &str) -> Self {
        Self {
            place: Place::of(config, &account),
            account,
            host: config.api_host.clone(),
            port: config.api_port,
            version: version.to_owned(),
            client: Mutex::default(),
        }
    }

    /// Where the Secret lies.
    #[must_use]
    pub const fn place(&self) -> &Place {
        &self.place
    }

    /// The Secret; `None` only where the API itself says that there is none.
    ///
    /// # Errors
    /// [`Failure`] by meaning.
    pub async fn get(&self) -> Result<Option<Object>, Failure> {
        self.call(Verb::Get, None, Mode::Real).await
    }

    /// Makes the Secret.
    ///
    /// # Errors
    /// [`Failure::Conflict`] where there is one by now, else by meaning.
    pub async fn create(&self, object: &Object, mode: Mode) -> Result<(), Failure> {
        self.call(Verb::Create, Some(object), mode).await.map(drop)
    }

    /// Replaces the Secret, if it is still the one that `object` was made from.
    ///
    /// # Errors
    /// [`Failure::Conflict`] where it is not, else by meaning.
    pub async fn replace(&self, object: &Object, mode: Mode) -> Result<(), Failure> {
        self.call(Verb::Update, Some(object), mode).await.map(drop)
    }

    async fn call(&self, verb: Verb, body: Option<&Object>, mode: Mode) -> Result<Option<Object>, Failure> {
        let method = match verb {
            Verb::Get => Method::GET,
            Verb::Create => Method::POST,
            Verb::Update => Method::PUT,
        };
        let mut request = self.client()?.request(method, self.url(verb, mode)?);
        request = request.header(AUTHORIZATION, self.authorization()?).header(ACCEPT, "application/json");
        if let Some(object) = body {
            request = request.json(object);
        }
        let unanswered = |error: reqwest::Error| {
            let detail = http::chain(&error.without_url());
            Failure::Unanswered { verb, place: self.place.clone(), detail }
        };
        let mut response = request.send().await.map_err(unanswered)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let mut text = Zeroizing::new(Vec::with_capacity(16 * 1024));
        while let Some(chunk) = response.chunk().await.map_err(unanswered)? {
            text.extend_from_slice(&chunk);
            if text.len() > MAX_ANSWER_BYTES {
                return Err(self.unexpected(verb, "more than 4 MiB"));
            }
        }
        if status.is_success() {
            // What it says may be a key: neither it nor the parser's excerpt of it is shown.
            let object: Object = serde_json::from_slice(&text).map_err(|_| self.unexpected(verb, "no Secret"))?;
            let known = object.is_at(&self.place) || mode == Mode::Rehearsal;
            return if known { Ok(Some(object)) } else { Err(self.unexpected(verb, "another object")) };
        }
        self.refusal(verb, status, &headers, &text)
    }

    fn refusal(
        &self,
        verb: Verb,
        status: StatusCode,
        headers: &HeaderMap,
        text: &[u8],
    ) -> Result<Option<Object>, Failure> {
        let place = || self.place.clone();
        let said: Option<Status> = serde_json::from_slice(text).ok().filter(|said: &Status| said.kind == "Status");
        let code = status.as_u16();
        let detail = format!("{code} {}", printable(said.as_ref().map_or("", |said| said.message.as_str())));
        let Some(said) = said else {
            // A load balancer before the API servers answers like this while they are restarted.
            return Err(match code {
                429 | 500..=599 => self.unavailable(verb, detail, headers),
                _ => self.unexpected(verb, format!("{code}, not in the API's form")),
            });
        };
        Err(match (code, verb) {
            (404, Verb::Get) if said.reason == "NotFound" && said.details.name == self.place.name => return Ok(None),
            (401, _) => Failure::Unauthorized { detail },
            (403, _) if said.reason == "Forbidden" && said.message.contains("cannot") => {
                Failure::Forbidden { verb, place: place(), detail }
            }
            (409, _) if matches!(said.reason.as_str(), "Conflict" | "AlreadyExists") => {
                Failure::Conflict { place: place(), detail }
            }
            (404, Verb::Update) if said.reason == "NotFound" => Failure::Conflict { place: place(), detail },
            (429 | 500..=599, _) => self.unavailable(verb, detail, headers),
            _ => Failure::Refused { verb, place: place(), detail },
        })
    }

    fn unavailable(&self, verb: Verb, detail: String, headers: &HeaderMap) -> Failure {
        let seconds = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let retry_after = seconds.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_CAP));
        Failure::Unavailable { verb, place: self.place.clone(), detail, retry_after }
    }

    fn unexpected(&self, verb: Verb, detail: impl Into<String>) -> Failure {
        Failure::Unexpected { verb, place: self.place.clone(), detail: detail.into() }
    }

    fn authorization(&self) -> Result<HeaderValue, Failure> {
        let token = self.account.token().map_err(|error| self.unusable(&error))?;
        let mut value =
            HeaderValue::try_from(format!("Bearer {}", token.expose())).map_err(|error| self.unusable(&error))?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The client under the authority as it is mounted at this moment.
    fn client(&self) -> Result<reqwest::Client, Failure> {
        let tls = self.account.tls().map_err(|error| self.unusable(&error))?;
        let mut kept = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, client)) = kept.as_ref()
            && Arc::ptr_eq(of, &tls)
        {
            return Ok(client.clone());
        }
        // Nothing of how the rest of the world is reached counts here.
        let network = NetworkConfig::default();
        let client = http::client_over(tls.as_ref().clone(), &network, Purpose::Cluster, &self.version)
            .map_err(|error| self.unusable(&error))?;
        *kept = Some((tls, client.clone()));
        Ok(client)
    }

    fn unusable(&self, error: &(dyn std::error::Error + 'static)) -> Failure {
        Failure::Account { place: self.place.clone(), detail: http::chain(error) }
    }

    fn url(&self, verb: Verb, mode: Mode) -> Result<Url, Failure> {
        let host = self.host.as_deref().ok_or_else(|| Failure::NoAddress { place: self.place.clone() })?;
        // IPv6 comes without its brackets.
        let host = if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
        let mut url = Url::parse(&format!("https://{host}:{}", self.port)).map_err(|_| Failure::BadAddress)?;
        {
            let mut path = url.path_segments_mut().map_err(|()| Failure::BadAddress)?;
            path.extend(["api", "v1", "namespaces", &self.place.namespace, "secrets"]);
            if verb != Verb::Create {
                path.push(&self.place.name);
            }
        }
        if verb != Verb::Get {
            url.query_pairs_mut().append_pair("fieldManager", "bamf-agent");
            if mode == Mode::Rehearsal {
                url.query_pairs_mut().append_pair("dryRun", "All");
            }
        }
        Ok(url)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn api(host: Option<&str>) -> Api {
        let config = KubernetesConfig {
            cert_secret_name: "certs".into(),
            namespace: Some("bamf".into()),
            api_host: host.map(str::to_owned),
            api_port: 6443,
        };
        Api::new(&config, ServiceAccount::new("/nonexistent"), "1.0.0")
    }

    fn answer(verb: Verb, code: u16, body: &str) -> Result<bool, Failure> {
        let status = StatusCode::from_u16(code).unwrap();
        api(None).refusal(verb, status, &HeaderMap::new(), body.as_bytes()).map(|object| object.is_some())
    }

    fn status(reason: &str, message: &str, name: &str) -> String {
        serde_json::json!({"kind": "Status", "reason": reason, "message": message, "details": {"name": name}})
            .to_string()
    }

    #[test]
    fn the_address_is_the_services_also_where_it_is_ipv6() {
        let url = |host, verb, mode| api(Some(host)).url(verb, mode).unwrap().to_string();
        let base = "/api/v1/namespaces/bamf/secrets";
        assert_eq!(url("10.0.0.1", Verb::Get, Mode::Real), format!("https://10.0.0.1:6443{base}/certs"));
        let update = format!("https://[fd00::1]:6443{base}/certs?fieldManager=bamf-agent");
        assert_eq!(url("fd00::1", Verb::Update, Mode::Real), update);
        let rehearsal = format!("https://k8s:6443{base}?fieldManager=bamf-agent&dryRun=All");
        assert_eq!(url("k8s", Verb::Create, Mode::Rehearsal), rehearsal);
        assert!(matches!(api(None).url(Verb::Get, Mode::Real), Err(Failure::NoAddress { .. })));
    }

    #[test]
    fn only_the_apis_own_words_about_this_very_secret_mean_that_there_is_none() {
        assert_eq!(answer(Verb::Get, 404, &status("NotFound", "no", "certs")), Ok(false));
        let others = [
            (404, "404 page not found".to_owned()),
            (404, "{}".to_owned()),
            (404, r#"{"detail":"Not Found"}"#.to_owned()),
            (404, status("NotFound", "no", "other")),
            (404, status("", "the server could not find the requested resource", "")),
            (403, status("Forbidden", "secrets \"certs\" is forbidden: cannot get", "certs")),
            (401, status("Unauthorized", "Unauthorized", "")),
            (500, status("InternalError", "etcd", "certs")),
            (302, String::new()),
        ];
        for (code, body) in others {
            assert!(answer(Verb::Get, code, &body).is_err(), "{code} {body}");
        }
    }

    #[test]
    fn each_refusal_has_its_meaning() {
        let of = |verb, code, reason, message| answer(verb, code, &status(reason, message, "certs")).unwrap_err();
        let conflict = |failure| matches!(failure, Failure::Conflict { .. });
        assert!(conflict(of(Verb::Create, 409, "AlreadyExists", "exists")));
        assert!(conflict(of(Verb::Update, 409, "Conflict", "modified")));
        assert!(conflict(of(Verb::Update, 404, "NotFound", "gone")), "deleted in between");
        assert!(matches!(of(Verb::Update, 403, "Forbidden", "cannot update"), Failure::Forbidden { .. }));
        // A quota and an admission webhook say 403 too, and no rule of a Role helps against them.
        assert!(matches!(of(Verb::Create, 403, "Forbidden", "exceeded quota"), Failure::Refused { .. }));
        assert!(matches!(of(Verb::Update, 422, "Invalid", "immutable"), Failure::Refused { .. }));
        assert!(matches!(of(Verb::Get, 503, "ServiceUnavailable", "later"), Failure::Unavailable { .. }));
        assert!(matches!(answer(Verb::Get, 503, "<html>"), Err(Failure::Unavailable { .. })));
    }
}
