//! Where the API reports its version, if anywhere (contract section 4).
//!
//! Today's platform reports none: its OpenAPI document carries the constant `0.1.0` whatever it is (protocol 3.7). The two
//! other places are what the contract asks of a platform that wants its agents to update themselves.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What today's servers send, whatever they are.
const CONSTANT: &str = "0.1.0";

/// A place that can tell the version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VersionReport {
    /// `GET /api/v1/version`, `.version`. Without a version there it answers 404.
    Endpoint,
    /// `GET /health`, `.version`.
    Health,
    /// `GET /api/openapi.json`, `.info.version`, instead of the constant `0.1.0`.
    OpenApi,
    /// No place at all.
    Nowhere,
}

/// The version and where it is told.
#[derive(Debug)]
pub(crate) struct Versions {
    version: Option<String>,
    place: VersionReport,
    extra: BTreeMap<VersionReport, String>,
}

impl Default for Versions {
    fn default() -> Self {
        Self { version: None, place: VersionReport::Endpoint, extra: BTreeMap::new() }
    }
}

impl Versions {
    pub(crate) fn set(&mut self, version: Option<&str>) {
        self.version = version.map(str::to_owned);
    }

    pub(crate) fn report_at(&mut self, place: VersionReport) {
        self.place = place;
    }

    pub(crate) fn also_report(&mut self, place: VersionReport, version: &str) {
        self.extra.insert(place, version.to_owned());
    }

    fn at(&self, place: VersionReport) -> Option<&str> {
        let main = self.version.as_deref().filter(|_| self.place == place);
        main.or_else(|| self.extra.get(&place).map(String::as_str))
    }

    /// Body of `/api/v1/version`; today's platform has no such endpoint.
    pub(crate) fn endpoint(&self) -> Option<Value> {
        self.at(VersionReport::Endpoint).map(|version| json!({ "version": version }))
    }

    pub(crate) fn health(&self) -> Value {
        match self.at(VersionReport::Health) {
            Some(version) => json!({ "status": "healthy", "version": version }),
            None => json!({ "status": "healthy" }),
        }
    }

    pub(crate) fn openapi(&self) -> Value {
        let version = self.at(VersionReport::OpenApi).unwrap_or(CONSTANT);
        json!({ "openapi": "3.1.0", "info": { "title": "BAMF API", "version": version }, "paths": {} })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything(versions: &Versions) -> (Option<Value>, Value, String) {
        (versions.endpoint(), versions.health(), versions.openapi()["info"]["version"].as_str().unwrap().to_owned())
    }

    #[test]
    fn the_version_is_told_at_the_chosen_place_only() {
        let healthy = json!({ "status": "healthy" });
        let told = json!({ "version": "1.2.0" });
        let mut versions = Versions::default();
        assert_eq!(everything(&versions), (None, healthy.clone(), "0.1.0".into()), "unset");
        versions.set(Some("1.2.0"));
        assert_eq!(everything(&versions), (Some(told), healthy.clone(), "0.1.0".into()));
        versions.report_at(VersionReport::Health);
        let with_version = json!({ "status": "healthy", "version": "1.2.0" });
        assert_eq!(everything(&versions), (None, with_version, "0.1.0".into()));
        versions.report_at(VersionReport::OpenApi);
        assert_eq!(everything(&versions), (None, healthy.clone(), "1.2.0".into()));
        versions.report_at(VersionReport::Nowhere);
        assert_eq!(everything(&versions), (None, healthy, "0.1.0".into()));
    }

    #[test]
    fn two_places_can_contradict_each_other() {
        let mut versions = Versions::default();
        versions.set(Some("1.2.0"));
        versions.also_report(VersionReport::Health, "1.1.0");
        assert_eq!(versions.endpoint().unwrap()["version"], "1.2.0");
        assert_eq!(versions.health()["version"], "1.1.0");
    }
}
