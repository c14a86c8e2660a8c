//! The software bill of materials of a release: what is linked into the agent, as an SPDX 2.3 document.
//!
//! SPDX under the name that the platform's releases have for it. It is made here from what cargo resolves, and not by a
//! tool of its own: those bring two hundred crates to list two hundred, know nothing of `SOURCE_DATE_EPOCH` or list what
//! is only built or tested with, and everything that must be known is in `cargo tree` and Cargo.lock. The same commit
//! makes the same bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

/// The targets that are released. Cargo resolves for them whether or not they can be built for here.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu"];

/// The project, in whose releases the document lies.
const REPOSITORY: &str = env!("CARGO_PKG_REPOSITORY");

/// The document for a version, `1.2.0`, made at `epoch` (seconds since 1970), for the workspace in this directory.
///
/// # Errors
/// Cargo fails, or says what is not understood; the sentence says which.
pub fn of_workspace(workspace: &Path, version: &str, epoch: i64) -> Result<String, String> {
    let created = jiff::Timestamp::from_second(epoch).map_err(|error| format!("{epoch} is no time: {error}"))?;
    let lock = std::fs::read_to_string(workspace.join("Cargo.lock")).map_err(|error| format!("Cargo.lock: {error}"))?;
    let mut graph = Graph::default();
    for target in TARGETS {
        graph.add(&ask_cargo(workspace, target)?)?;
    }
    let rustc = output(Command::new("rustc").current_dir(workspace).arg("--version"))?;
    let rustc = rustc.split(' ').nth(1).ok_or("rustc does not say its version")?.to_owned();
    let document = graph.document(version, &rustc, &created.to_string(), &checksums(&lock));
    serde_json::to_string_pretty(&document).map(|text| text + "\n").map_err(|error| error.to_string())
}

fn ask_cargo(workspace: &Path, target: &str) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(cargo);
    cargo.current_dir(workspace).args(["tree", "--quiet", "--locked", "--package", "bamf-agent"]);
    // Procedural macros, and what build scripts use, are not in the binary.
    cargo.args(["--edges", "normal,no-proc-macro", "--target", target]);
    output(cargo.args(["--charset", "ascii", "--prefix", "depth", "--format", " {p}|{l}"]))
}

fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// SHA-256 of the published crates, by name and version. The lock file's sections are one line per key.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let mut checksums = BTreeMap::new();
    for section in lock.split("[[package]]") {
        let value = |key: &str| {
            let line = section.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = \""))?;
            line.strip_suffix('"').map(str::to_owned)
        };
        if let (Some(name), Some(version), Some(checksum)) = (value("name"), value("version"), value("checksum")) {
            checksums.insert((name, version), checksum);
        }
    }
    checksums
}

/// A crate in one version.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Crate {
    name: String,
    version: String,
}

impl Crate {
    /// "SPDXRef-" and letters, digits, `.` and `-` (SPDX 2.3, 7.2).
    fn id(&self) -> String {
        let text = format!("{}-{}", self.name, self.version);
        let text: String = text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        format!("SPDXRef-crate-{text}")
    }
}

/// What depends on what.
#[derive(Debug, Default)]
struct Graph {
    /// The crates and their licences.
    licences: BTreeMap<Crate, String>,
    /// Who needs whom.
    edges: BTreeSet<(Crate, Crate)>,
}

impl Graph {
    /// Takes in lines of `DEPTH NAME vVERSION (…)|LICENCE (*)`.
    fn add(&mut self, tree: &str) -> Result<(), String> {
        let mut path: Vec<Crate> = Vec::new();
        for line in tree.lines().filter(|line| !line.is_empty()) {
            let (depth, node, licence) =
                parse(line).ok_or_else(|| format!("cargo tree says what is not understood: {line}"))?;
            path.truncate(depth);
            if path.len() != depth {
                return Err(format!("cargo tree leaves out a step before: {line}"));
            }
            if let Some(parent) = path.last() {
                self.edges.insert((parent.clone(), node.clone()));
            }
            self.licences.insert(node.clone(), licence);
            path.push(node);
        }
        Ok(())
    }

    fn document(
        &self,
        version: &str,
        rustc: &str,
        created: &str,
        checksums: &BTreeMap<(String, String), String>,
    ) -> Value {
        let name = |node: &Crate| if node.name == "bamf-agent" { AGENT.to_owned() } else { node.id() };
        let mut packages = vec![agent(version), standard_library(rustc)];
        let others = self.licences.iter().filter(|(node, _)| node.name != "bamf-agent");
        packages.extend(others.map(|(node, licence)| {
            let checksum = checksums.get(&(node.name.clone(), node.version.clone()));
            package(node, licence, checksum.map(String::as_str))
        }));
        let relation = |from: &str, kind: &str, to: &str| json!({"spdxElementId": from, "relationshipType": kind, "relatedSpdxElement": to});
        let mut relationships =
            vec![relation("SPDXRef-DOCUMENT", "DESCRIBES", AGENT), relation(AGENT, "STATIC_LINK", LIBRARY)];
        relationships.extend(self.edges.iter().map(|(from, to)| relation(&name(from), "DEPENDS_ON", &name(to))));
        json!({
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": "SPDXRef-DOCUMENT",
            "name": format!("bamf-agent-{version}"),
            "documentNamespace": format!("{REPOSITORY}/releases/download/v{version}/sbom-bamf-agent.spdx.json"),
            "creationInfo": {"created": created, "creators": ["Tool: bamf-lab-sbom"]},
            "packages": packages,
            "relationships": relationships,
        })
    }
}

const AGENT: &str = "SPDXRef-bamf-agent";
const LIBRARY: &str = "SPDXRef-rust-standard-library";

fn agent(version: &str) -> Value {
    json!({
        "SPDXID": AGENT,
        "name": "bamf-agent",
        "versionInfo": version,
        "primaryPackagePurpose": "APPLICATION",
        "downloadLocation": format!("{REPOSITORY}/releases/download/v{version}"),
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "MPL-2.0",
        "copyrightText": "NOASSERTION",
    })
}

fn standard_library(rustc: &str) -> Value {
    json!({
        "SPDXID": LIBRARY,
        "name": "rust-standard-library",
        "versionInfo": rustc,
        "primaryPackagePurpose": "LIBRARY",
        "downloadLocation": "https://static.rust-lang.org/dist",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "MIT OR Apache-2.0",
        "copyrightText": "NOASSERTION",
    })
}

fn package(node: &Crate, licence: &str, checksum: Option<&str>) -> Value {
    let Crate { name, version } = node;
    let mut package = json!({
        "SPDXID": node.id(),
        "name": name,
        "versionInfo": version,
        "primaryPackagePurpose": "LIBRARY",
        // What it is and where to get it is the reference below.
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": licence,
        "copyrightText": "NOASSERTION",
        "externalRefs": [{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": format!("pkg:cargo/{name}@{}", version.replace('+', "%2B")),
        }],
    });
    if let Some(checksum) = checksum {
        package["checksums"] = json!([{"algorithm": "SHA256", "checksumValue": checksum}]);
    }
    package
}

fn parse(line: &str) -> Option<(usize, Crate, String)> {
    let (depth, rest) = line.split_once(' ')?;
    let (node, licence) = rest.split_once('|')?;
    let mut words = node.split(' ');
    let name = words.next().filter(|name| !name.is_empty())?.to_owned();
    let version = words.next()?.strip_prefix('v')?.to_owned();
    // Old manifests separate alternatives by a slash.
    let licence = licence.trim_end_matches(" (*)").trim().replace('/', " OR ");
    let licence = if licence.is_empty() { "NOASSERTION".to_owned() } else { licence };
    Some((depth.parse().ok()?, Crate { name, version }, licence))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TREE: &str = "0 bamf-agent v0.1.0 (/somewhere)|MPL-2.0\n1 a_b v1.0.0+c2|MIT/Apache-2.0\n2 d v0.3.0|\n\
                        1 d v0.3.0| (*)\n";

    #[test]
    fn a_tree_becomes_packages_and_relations() {
        let mut graph = Graph::default();
        graph.add(TREE).unwrap();
        let lock = "version = 4\n\n[[package]]\nname = \"d\"\nversion = \"0.3.0\"\nchecksum = \"abc\"\n\n[[package]]\n\
                    name = \"bamf-agent\"\nversion = \"0.1.0\"\n";
        let document = graph.document("1.2.0", "1.95.0", "2026-01-01T00:00:00Z", &checksums(lock));
        let names: Vec<_> = document["packages"].as_array().unwrap().iter().map(|p| p["name"].clone()).collect();
        assert_eq!(names, ["bamf-agent", "rust-standard-library", "a_b", "d"]);
        assert_eq!(document["packages"][0]["versionInfo"], "1.2.0", "the release's version, not the manifest's");
        let (old, plain) = (&document["packages"][2], &document["packages"][3]);
        assert_eq!(old["SPDXID"], "SPDXRef-crate-a-b-1.0.0-c2");
        assert_eq!(old["licenseDeclared"], "MIT OR Apache-2.0");
        assert_eq!(old["externalRefs"][0]["referenceLocator"], "pkg:cargo/a_b@1.0.0%2Bc2");
        assert_eq!(plain["licenseDeclared"], "NOASSERTION");
        assert_eq!(plain["checksums"][0]["checksumValue"], "abc");
        let relations = document["relationships"].as_array().unwrap();
        let related = |from: &str, to: &str| {
            relations.iter().any(|relation| relation["spdxElementId"] == from && relation["relatedSpdxElement"] == to)
        };
        assert!(related(AGENT, "SPDXRef-crate-a-b-1.0.0-c2") && related(AGENT, "SPDXRef-crate-d-0.3.0"));
        assert!(related("SPDXRef-crate-a-b-1.0.0-c2", "SPDXRef-crate-d-0.3.0"));
        assert_eq!(relations.len(), 5, "with the document's and the standard library's: {relations:#?}");
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_no_shorter_list() {
        for tree in ["0 bamf-agent v0.1.0", "x a v1|MIT", "0 a 1.0.0|MIT", "1 a v1.0.0|MIT", "0 a v1|M\n2 b v1|M"] {
            assert!(Graph::default().add(tree).is_err(), "{tree}");
        }
    }

    #[test]
    fn the_agents_own_document_lists_what_is_linked_and_nothing_that_is_only_built_or_tested_with() {
        let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = of_workspace(workspace, "1.2.0", 1_760_000_000).unwrap();
        assert_eq!(text, of_workspace(workspace, "1.2.0", 1_760_000_000).unwrap(), "the same bytes each time");
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["creationInfo"]["created"], "2025-10-09T08:53:20Z");
        let packages = document["packages"].as_array().unwrap();
        let named = |name: &str| packages.iter().find(|package| package["name"] == name);
        for name in ["rustls", "aws-lc-sys", "tokio", "clap_complete"] {
            let package = named(name).unwrap_or_else(|| panic!("{name} is missing"));
            assert_eq!(package["checksums"][0]["checksumValue"].as_str().unwrap().len(), 64, "{name}");
        }
        for name in ["bamf-lab", "cc", "proptest", "serde_derive"] {
            assert!(named(name).is_none(), "{name} is not in the binary");
        }
        let ids: BTreeSet<_> = packages.iter().map(|package| package["SPDXID"].to_string()).collect();
        assert_eq!(ids.len(), packages.len(), "ids are unique");
        for relation in document["relationships"].as_array().unwrap() {
            assert!(ids.contains(&relation["relatedSpdxElement"].to_string()), "{relation}");
        }
    }
}
