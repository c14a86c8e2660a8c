//! Sets that belong together, and every way in which they do not.

use std::time::{Duration, SystemTime};

use bamf_lab::plane::CertificateAuthority;

use super::*;
use crate::secret::Secret;

fn issued(ca: &CertificateAuthority, name: &str) -> Material {
    let now = SystemTime::now();
    let issued = ca.identity(name, now, now + Duration::from_secs(3600)).unwrap();
    Material {
        certificate_pem: Secret::new(issued.certificate_pem),
        private_key_pem: Secret::new(issued.private_key_pem),
        ca_pem: issued.ca_pem,
    }
}

#[test]
fn a_set_from_the_platform_is_read() {
    let identity = inspect(issued(&CertificateAuthority::new(), "edge-1")).unwrap();
    assert_eq!(identity.name, "edge-1");
    assert_eq!(identity.sha256.len(), 64);
    assert_eq!(identity.not_after.duration_since(identity.not_before).unwrap(), Duration::from_secs(3600));
}

#[test]
fn the_platforms_own_example_is_read() {
    let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../tests/vectors.json")).unwrap();
    let header = &vectors["client_cert_header"];
    let pem = header["cert_pem"].as_str().unwrap();
    let der = certificate(pem, "agent.crt").unwrap();
    let parsed = Certificate::from_der(&der).unwrap();
    assert!(parsed.tbs_certificate().subject().common_name().unwrap().is_some());
    assert_eq!(fingerprint(&der).len(), 64);
}

#[test]
fn an_expired_set_is_still_a_set() {
    let ca = CertificateAuthority::new();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let issued = ca.identity("edge-1", long_ago, long_ago + Duration::from_secs(60)).unwrap();
    let identity = inspect(Material {
        certificate_pem: Secret::new(issued.certificate_pem),
        private_key_pem: Secret::new(issued.private_key_pem),
        ca_pem: issued.ca_pem,
    });
    assert!(identity.unwrap().is_expired(SystemTime::now()));
}

#[test]
fn a_key_of_another_pair_is_refused() {
    let ca = CertificateAuthority::new();
    let mut material = issued(&ca, "edge-1");
    material.private_key_pem = issued(&ca, "edge-1").private_key_pem;
    assert_eq!(inspect(material).unwrap_err(), Flaw::KeyMismatch);
}

#[test]
fn a_foreign_authority_is_refused() {
    let mut material = issued(&CertificateAuthority::new(), "edge-1");
    material.ca_pem = CertificateAuthority::new().pem().to_owned();
    assert_eq!(inspect(material).unwrap_err(), Flaw::ForeignAuthority);
}

#[test]
fn every_file_that_is_something_else_is_named() {
    let ca = CertificateAuthority::new();
    for nonsense in ["", "<html>", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "\u{0}\u{1}"] {
        type Spoil = fn(&mut Material, String);
        let cases: [(&str, Spoil); 3] = [
            ("agent.crt", |material, text| material.certificate_pem = Secret::new(text)),
            ("agent.key", |material, text| material.private_key_pem = Secret::new(text)),
            ("ca.crt", |material, text| material.ca_pem = text),
        ];
        for (file, spoil) in cases {
            let mut material = issued(&ca, "edge-1");
            spoil(&mut material, nonsense.into());
            let flaw = inspect(material).unwrap_err();
            assert!(flaw.to_string().contains(file), "{file} with {nonsense:?} gave {flaw}");
        }
    }
}

#[test]
fn no_flaw_shows_what_is_in_a_file() {
    let mut material = issued(&CertificateAuthority::new(), "edge-1");
    material.private_key_pem = Secret::new("top secret".into());
    let flaw = inspect(material).unwrap_err();
    assert!(!format!("{flaw} {flaw:?}").contains("secret"));
}
