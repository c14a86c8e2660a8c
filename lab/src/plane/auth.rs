//! Who calls: the API believes the public certificate in a header (protocol 1.3 and 3.2).
//!
//! What it checks: the signature of the *current* CA, the validity without any tolerance, that there is a CN, and the
//! denylist. What it does not check, and neither do we: the certificate's kind, its SAN and EKU, and whether the caller has
//! the key.

use std::collections::BTreeSet;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use x509_parser::pem::Pem;

use super::ca::{CertificateAuthority, fingerprint};

/// The header with the base64 of the certificate's PEM text.
pub(crate) const HEADER: &str = "x-bamf-client-cert";

/// The holder of a certificate that was good at the time of the call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) name: String,
    pub(crate) sha256: String,
}

/// The first certificate of a header value. Whitespace in the base64 is ignored.
pub(crate) fn decode(header: &str) -> Option<Pem> {
    let packed: String = header.split_ascii_whitespace().collect();
    let text = STANDARD.decode(packed).ok()?;
    Pem::iter_from_buffer(&text).find_map(|pem| pem.ok().filter(|pem| pem.label == "CERTIFICATE"))
}

/// The fingerprint of a header's certificate, good or not.
pub(crate) fn claimed_sha256(header: &str) -> Option<String> {
    decode(header).map(|pem| fingerprint(&pem.contents))
}

/// Checks a header. The error is the `detail` of the 401.
pub(crate) fn authenticate(
    header: Option<&str>,
    ca: &CertificateAuthority,
    revoked: &BTreeSet<String>,
    now: SystemTime,
) -> Result<Caller, &'static str> {
    let pem = decode(header.ok_or("Client certificate required")?).ok_or("Invalid client certificate")?;
    let certificate = pem.parse_x509().map_err(|_| "Invalid client certificate")?;
    if !ca.signed(&certificate) {
        return Err("Client certificate was not issued by this platform");
    }
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX));
    if now < certificate.validity().not_before.timestamp() {
        return Err("Client certificate is not yet valid");
    }
    if now > certificate.validity().not_after.timestamp() {
        return Err("Client certificate has expired");
    }
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let name = name.ok_or("Client certificate has no common name")?.to_owned();
    let sha256 = fingerprint(&pem.contents);
    if revoked.contains(&sha256) {
        return Err("Client certificate has been revoked");
    }
    Ok(Caller { name, sha256 })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn header(pem: &str) -> String {
        STANDARD.encode(pem)
    }

    #[test]
    fn the_documented_header_value_decodes_to_the_documented_certificate() {
        let vectors: serde_json::Value = serde_json::from_str(include_str!("../../../tests/vectors.json")).unwrap();
        let vector = &vectors["client_cert_header"];
        let (value, pem) = (vector["header_value"].as_str().unwrap(), vector["cert_pem"].as_str().unwrap());
        let expected = Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap().contents;
        assert_eq!(decode(value).unwrap().contents, expected);
        let folded: Vec<_> = value.as_bytes().chunks(64).map(|line| str::from_utf8(line).unwrap()).collect();
        assert_eq!(decode(&folded.join("\n ")).unwrap().contents, expected, "whitespace is ignored");
        let text = STANDARD.decode(value).unwrap();
        assert_eq!(text, pem.as_bytes(), "the PEM text with its final newline");
    }

    #[test]
    fn a_good_certificate_names_its_caller() {
        let (ca, now) = (CertificateAuthority::new(), SystemTime::now());
        let issued = ca.identity("edge-1", now, now + HOUR).unwrap();
        let caller = authenticate(Some(&header(&issued.certificate_pem)), &ca, &BTreeSet::new(), now).unwrap();
        assert_eq!(caller, Caller { name: "edge-1".into(), sha256: issued.sha256 });
    }

    #[test]
    fn the_first_certificate_of_several_counts() {
        let (ca, now) = (CertificateAuthority::new(), SystemTime::now());
        let issued = ca.identity("edge-1", now, now + HOUR).unwrap();
        let both = format!("{}{}{}", issued.private_key_pem, issued.certificate_pem, ca.pem());
        assert_eq!(authenticate(Some(&header(&both)), &ca, &BTreeSet::new(), now).unwrap().name, "edge-1");
    }

    #[test]
    fn every_bad_certificate_is_refused() {
        let (ca, now) = (CertificateAuthority::new(), SystemTime::now());
        let issue = |from, to| ca.identity("edge-1", from, to).unwrap();
        let good = issue(now, now + HOUR);
        let foreign = CertificateAuthority::new().identity("edge-1", now, now + HOUR).unwrap();
        let expired = issue(now - 2 * HOUR, now - Duration::from_secs(2));
        let early = issue(now + Duration::from_secs(2), now + HOUR);
        let revoked = BTreeSet::from([good.sha256.clone()]);
        for (value, what) in [
            (None, "absent"),
            (Some("%%%".to_owned()), "no base64"),
            (Some(header("hello")), "no PEM"),
            (Some(header("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")), "no certificate"),
            (Some(header(&foreign.certificate_pem)), "foreign"),
            (Some(header(&expired.certificate_pem)), "expired"),
            (Some(header(&early.certificate_pem)), "not yet valid, without tolerance"),
            (Some(header(&good.certificate_pem)), "revoked"),
        ] {
            assert!(authenticate(value.as_deref(), &ca, &revoked, now).is_err(), "{what}");
        }
    }

    #[test]
    fn the_kind_of_certificate_is_not_looked_at() {
        // Even the CA's own certificate gets in: it is signed by the CA's key and has a CN (protocol 1.3).
        let ca = CertificateAuthority::new();
        let caller = authenticate(Some(&header(ca.pem())), &ca, &BTreeSet::new(), SystemTime::now()).unwrap();
        assert_eq!(caller.name, "BAMF Certificate Authority");
    }
}
