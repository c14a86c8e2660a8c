//! The room from its front door: the vectors of the protocol, the contract's own example, wrong values of every kind.

use std::path::Path;
use std::sync::Arc;

use base64::Engine as _;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

const FILE: &str = "/etc/bamf/agent.yaml";

/// Enough for a configuration to be complete.
const URL: (&str, &str) = ("BAMF_PLATFORM_URL", "https://bamf.test");

fn read(yaml: &str, variables: &[(&str, &str)]) -> Result<Loaded, Invalid> {
    let document = Document { path: Arc::from(Path::new(FILE)), named_by: Origin::Default, text: yaml.to_owned() };
    let mut environment = Environment::from_pairs(variables.iter().copied());
    environment.host_name = Some("web01".to_owned());
    interpret(Some(&document), &Overrides::default(), &environment)
}

fn loaded(yaml: &str, variables: &[(&str, &str)]) -> Loaded {
    read(yaml, &[&[URL], variables].concat()).unwrap_or_else(|invalid| panic!("{yaml}\n{invalid}"))
}

fn config(yaml: &str, variables: &[(&str, &str)]) -> Config {
    loaded(yaml, variables).config
}

fn problems(yaml: &str, variables: &[(&str, &str)]) -> Vec<String> {
    match read(yaml, &[&[URL], variables].concat()) {
        Ok(_) => panic!("accepted: {yaml}"),
        Err(invalid) => invalid.problems.iter().map(ToString::to_string).collect(),
    }
}

fn warnings(yaml: &str, variables: &[(&str, &str)]) -> Vec<String> {
    loaded(yaml, variables).warnings.iter().map(ToString::to_string).collect()
}

/// A well-formed minisign public key; the byte makes it another one.
fn public_key(byte: u8) -> String {
    let mut bytes = vec![byte; 42];
    bytes[..2].copy_from_slice(b"Ed");
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

// --- the protocol's vectors --------------------------------------------------

fn vectors(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("tests/vectors.json")).unwrap();
    all[name].as_array().unwrap().clone()
}

#[test]
fn duration_vectors() {
    for vector in vectors("duration_parse") {
        let nanos = duration::parse_nanos(vector["in"].as_str().unwrap());
        let millis = nanos.map(|nanos| nanos / 1_000_000);
        assert_eq!(millis, vector["ms"].as_i64(), "{vector}");
    }
}

#[test]
fn label_vectors() {
    for vector in vectors("labels_env") {
        let config = config("", &[("BAMF_LABELS", vector["in"].as_str().unwrap())]);
        assert_eq!(serde_json::to_value(config.labels).unwrap(), vector["out"]);
    }
}

/// Off-contract for one of them: a bad port discards the variable silently in the protocol and is a problem here.
#[test]
fn resource_variable_vectors() {
    for vector in vectors("resources_env") {
        let variables = [("BAMF_RESOURCES", vector["in"].as_str().unwrap())];
        if vector["out"].is_null() {
            assert_eq!(problems("", &variables).len(), 1, "{vector}");
            continue;
        }
        let resources = config("", &variables).resources;
        let ours: Vec<Value> = resources.iter().map(|resource| heartbeat(resource, true)).collect();
        assert_eq!(Value::from(ours), vector["out"], "{vector}");
        assert!(resources.iter().all(|resource| resource.tunnel_hostname.is_none()));
    }
}

#[test]
fn file_vectors() {
    for vector in vectors("config_yaml") {
        let config = config(vector["yaml"].as_str().unwrap(), &[]);
        if let Some(labels) = vector.get("labels") {
            assert_eq!(&serde_json::to_value(config.labels).unwrap(), labels);
        }
        let expected = vector.get("heartbeat_resources").or_else(|| vector.get("heartbeat_resources_any_order"));
        let ours: Vec<Value> = config.resources.iter().map(|resource| heartbeat(resource, false)).collect();
        assert_eq!(&Value::from(ours), expected.unwrap());
    }
}

/// The fields of a heartbeat that configuration decides; empty ones are left out of it.
fn heartbeat(resource: &Resource, keep_empty: bool) -> Value {
    let mut map = Map::new();
    map.insert("name".into(), json!(resource.name));
    map.insert("resource_type".into(), json!(resource.resource_type));
    map.insert("labels".into(), json!(resource.labels));
    if keep_empty || !resource.hostname.is_empty() {
        map.insert("hostname".into(), json!(resource.hostname));
    }
    if keep_empty || resource.port != 0 {
        map.insert("port".into(), json!(resource.port));
    }
    if let Some(tunnel_hostname) = &resource.tunnel_hostname {
        map.insert("tunnel_hostname".into(), json!(tunnel_hostname));
    }
    Value::Object(map)
}

// --- the contract ------------------------------------------------------------

/// The YAML block of contract section 2.
fn contract_example() -> &'static str {
    let contract = include_str!("../../docs/contract.md");
    contract.split_once("```yaml\n").unwrap().1.split_once("```").unwrap().0
}

#[test]
fn the_contracts_example_is_valid_apart_from_the_type_that_it_leaves_out() {
    let shown = problems(contract_example(), &[]);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert!(shown[0].contains("resources[0].type: found none"), "{shown:?}");
    let complete = contract_example().replace("  - name: wiki\n", "  - name: wiki\n    type: tcp\n");
    let unknown: Vec<_> = warnings(&complete, &[]).into_iter().filter(|text| text.contains("unknown key")).collect();
    assert_eq!(unknown, [] as [String; 0]);
}

#[test]
fn every_key_of_the_contracts_example_is_in_the_table_with_that_default() {
    let mut report = Report::default();
    let root = raw::parse(&Arc::from(Path::new("contract.md")), contract_example(), &mut report).unwrap();
    let raw::Body::Map(entries) = &root.body else { panic!("map") };
    let raw::Body::Map(update) = &raw::get(entries, "update").unwrap().body else { panic!("map") };
    let raw::Body::List(resources) = &raw::get(entries, "resources").unwrap().body else { panic!("list") };
    let raw::Body::Map(resource) = &resources[0].body else { panic!("map") };
    for (prefix, map) in [("", entries), ("update.", update), ("resources[].", resource)] {
        for entry in map.iter().filter(|entry| entry.key != "update") {
            let path = format!("{prefix}{}", entry.key);
            let key = keys::ALL.iter().find(|key| key.path == path).unwrap_or_else(|| panic!("{path}"));
            let same = |text: &str| match key.path {
                "update.health_timeout" | "update.drain_timeout" => {
                    duration::parse_nanos(text) == duration::parse_nanos(key.default)
                }
                "listen" => key.default.starts_with(text),
                "resources[].name" | "resources[].forward_session_token" => true,
                _ => text == key.default,
            };
            if let raw::Body::Text(text) = &entry.value.body {
                assert!(same(text), "{path}: {text} is not {}", key.default);
            }
        }
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = config("", &[]);
    assert_eq!(config.platform_base(), "https://bamf.test");
    assert_eq!((config.agent_name.as_str(), config.data_dir.as_path()), ("web01", Path::new("/var/lib/bamf-agent")));
    assert_eq!(config.listen.to_string(), "127.0.0.1:8081");
    assert_eq!(config.heartbeat_interval, Duration::from_secs(60));
    assert_eq!(config.reconnect_base_delay, Duration::from_secs(1));
    assert_eq!(config.reconnect_max_delay, Duration::from_secs(300));
    assert_eq!(config.runtime_dir, Path::new("/run/bamf-agent"));
    assert_eq!(config.update.source, "https://github.com/mattrobinsonsre/bamf");
    assert_eq!(config.update.required_signatures, 1);
    assert_eq!(config.update.health_timeout, Duration::from_secs(90));
    assert_eq!(config.update.drain_timeout, Duration::from_secs(30));
    assert!(!config.update.auto && !config.allow_insecure_http && !config.debug && !config.kubernetes);
    assert_eq!((config.zone, config.join_token, config.update.api_url), (None, None, None));
}

#[test]
fn the_environment_wins_over_the_file_and_empty_means_not_set() {
    let yaml = "platform_url: https://file.test/base/\nzone: public\ndata_dir: /file\nagent_name: from-file\n";
    let by_file = read(yaml, &[("BAMF_PLATFORM_URL", ""), ("BAMF_ZONE", " ")]).unwrap().config;
    assert_eq!((by_file.platform_base(), by_file.zone.as_deref()), ("https://file.test/base", Some("public")));
    let by_environment = read(
        yaml,
        &[
            ("BAMF_API_URL", "https://old.test"),
            ("BAMF_ZONE", "internal"),
            ("BAMF_DATA_DIR", "/env"),
            ("BAMF_DEBUG", "true"),
        ],
    );
    let by_environment = by_environment.unwrap().config;
    assert_eq!(by_environment.platform_base(), "https://old.test");
    assert_eq!((by_environment.zone.as_deref(), by_environment.debug), (Some("internal"), true));
    assert_eq!(
        (by_environment.data_dir.as_path(), by_environment.agent_name.as_str()),
        (Path::new("/env"), "from-file")
    );
    let both = read("", &[("BAMF_API_URL", "https://old.test"), ("BAMF_PLATFORM_URL", "https://new.test")]);
    assert_eq!(both.unwrap().config.platform_base(), "https://new.test");
}

#[test]
fn a_value_in_the_file_that_a_variable_overrides_is_not_judged() {
    assert_eq!(
        config("platform_url: nonsense\nzone: [x]\n", &[("BAMF_ZONE", "public")]).zone.as_deref(),
        Some("public")
    );
}

#[test]
fn without_a_platform_there_is_no_configuration() {
    for yaml in ["", "platform_url:\n", "platform_url: ''\n", "platform_url: ${EMPTY}\n"] {
        let invalid = read(yaml, &[("EMPTY", "")]).unwrap_err().to_string();
        assert!(
            invalid.starts_with("platform_url: found nothing, expected the platform's address"),
            "{yaml}: {invalid}"
        );
    }
    // A value that cannot be read is one problem, not two.
    assert_eq!(read("platform_url: ${NOPE}\n", &[]).unwrap_err().problems.len(), 1);
}

#[test]
fn labels_of_the_variable_are_added_to_the_files() {
    let labels = config("labels: {env: dev, team: core, empty: ~}\n", &[("BAMF_LABELS", "env=prod,x=y")]).labels;
    let shown: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(shown, ["empty=", "env=prod", "team=core", "x=y"]);
}

#[test]
fn resources_of_the_variable_replace_the_files() {
    let yaml = "resources: [{name: a, type: ssh, hostname: h}]\n";
    assert_eq!(config(yaml, &[("BAMF_RESOURCES", "b:ssh:h:22")]).resources[0].name, "b");
    assert_eq!(config(yaml, &[("BAMF_RESOURCES", "b:ssh:h")]).resources[0].name, "a");
}

#[test]
fn references_are_expanded_in_values_and_never_read_as_yaml() {
    let yaml = "zone: ${Z}\nlabels: {a: \"x-${V}\", b: '$${V}', c: '${V}', '${V}': key}\nresources:\n  - {name: '${N}', type: ssh, hostname: h, port: '${P}'}\n";
    let variables = [("Z", "public"), ("V", "[1, {a: *b}]\n# c"), ("N", "db"), ("P", "2222")];
    let config = config(yaml, &variables);
    let shown: Vec<_> = config.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    assert_eq!(shown, ["${V}=key", "a=x-[1, {a: *b}]\n# c", "b=${V}", "c=[1, {a: *b}]\n# c"]);
    assert_eq!((config.resources[0].name.as_str(), config.resources[0].port), ("db", 2222));
}

#[test]
fn an_unset_reference_is_an_error_that_names_it() {
    assert_eq!(
        problems("agent_name: ${NAME_OF_AGENT}\n", &[]),
        ["/etc/bamf/agent.yaml:1:13: agent_name: found ${NAME_OF_AGENT}, and NAME_OF_AGENT is not set in the \
          environment, expected a variable that is set (a literal ${ is written $${)"]
    );
}

#[test]
fn an_unset_reference_in_the_join_token_is_an_error_only_until_a_certificate_is_stored() {
    let loaded = loaded("join_token: ${JOIN}\n", &[]);
    assert!(loaded.config.join_token.is_none());
    let warning = loaded.check_join_token(true).unwrap().unwrap().to_string();
    assert!(warning.starts_with("/etc/bamf/agent.yaml:1:13: join_token: names JOIN, which is not set"), "{warning}");
    let problem = loaded.check_join_token(false).unwrap_err().to_string();
    assert!(problem.contains("${JOIN}, and JOIN is not set"), "{problem}");
    let row = loaded.show().into_iter().find(|row| row.key == "join_token").unwrap();
    assert_eq!((row.value.as_str(), row.origin.as_str()), ("(${JOIN} is not set)", "/etc/bamf/agent.yaml:1"));
}

#[test]
fn the_join_token_is_asked_for_before_there_is_a_certificate_and_called_needless_after() {
    let with = loaded("", &[("BAMF_JOIN_TOKEN", "bamf_t")]);
    assert_eq!(with.config.join_token.as_ref().unwrap().expose(), "bamf_t");
    assert_eq!(with.check_join_token(false), Ok(None));
    assert!(
        with.check_join_token(true)
            .unwrap()
            .unwrap()
            .to_string()
            .starts_with("BAMF_JOIN_TOKEN: join_token: is not needed")
    );
    let without = loaded("", &[]);
    assert_eq!(without.check_join_token(true), Ok(None));
    assert!(without.check_join_token(false).unwrap_err().to_string().contains("BAMF_JOIN_TOKEN"));
}

#[test]
fn all_problems_are_reported_together_in_the_order_of_reading() {
    let yaml = "\
agent_name: Web.01
listen: 8081
cluster_internal: maybe
resources:
  - {name: a, type: ssh, hostname: h, port: 99999}
  - {name: a, type: ssh, hostname: http://h}
update:
  window: whenever
  health_timeout: 0s
";
    let invalid = read(yaml, &[URL, ("BAMF_HEARTBEAT_INTERVAL", "-5")]).unwrap_err();
    let lines: Vec<String> =
        invalid.to_string().lines().map(|line| line.split(", expected").next().unwrap().to_owned()).collect();
    assert_eq!(
        lines,
        [
            "/etc/bamf/agent.yaml:1:13: agent_name: found \"Web.01\"",
            "/etc/bamf/agent.yaml:3:19: cluster_internal: found \"maybe\"",
            "/etc/bamf/agent.yaml:5:45: resources[0].port: found \"99999\"",
            "/etc/bamf/agent.yaml:6:36: resources[1].hostname: found \"http://h\"",
            "/etc/bamf/agent.yaml:6:5: resources[1].name: found the name \"a\" a second time (first at /etc/bamf/agent.yaml:5)",
            "/etc/bamf/agent.yaml:2:9: listen: found \"8081\"",
            "BAMF_HEARTBEAT_INTERVAL: heartbeat_interval: found \"-5\"",
            "/etc/bamf/agent.yaml:8:11: update.window: found \"whenever\"",
            "/etc/bamf/agent.yaml:9:19: update.health_timeout: found \"0s\"",
        ]
    );
}

#[test]
fn wrong_values_in_the_file_name_their_key() {
    for (yaml, key) in [
        ("platform_url: http://bamf.example.com", "platform_url"),
        ("platform_url: https://me:s3cret@bamf.example.com", "platform_url"),
        ("agent_name: 1a", "agent_name"),
        ("data_dir: [a]", "data_dir"),
        ("zone: {a: b}", "zone"),
        ("labels: [a]", "labels"),
        ("labels: {a: [b]}", "labels.a"),
        ("resources: text", "resources"),
        ("resources: [text]", "resources[0]"),
        ("resources: [~]", "resources[0]"),
        ("resources: {ssh: }", "resources.ssh"),
        ("resources: {ssh: {}}", "resources.ssh.name"),
        ("resources: [{name: a, hostname: h}]", "resources[0].type"),
        ("resources: [{name: a, type: ''}]", "resources[0].type"),
        ("resources: [{type: ssh}]", "resources[0].name"),
        ("resources: [{type: ssh, name: a b}]", "resources[0].name"),
        ("resources: [{type: ssh, hostname: '::1'}]", "resources[0].name"),
        ("resources: [{type: ssh, name: a, port: -1}]", "resources[0].port"),
        ("resources: [{type: ssh, name: a, port: 022}]", "resources[0].port"),
        ("resources: [{type: ssh, name: a, port: 0x16}]", "resources[0].port"),
        ("resources: [{type: ssh, name: a, port: ssh}]", "resources[0].port"),
        ("resources: [{type: ssh, name: a, dial: now}]", "resources[0].dial"),
        ("resources: [{type: ssh, name: a, forward_session_token: 2}]", "resources[0].forward_session_token"),
        ("resources: [{type: ssh, name: a, labels: x}]", "resources[0].labels"),
        ("resources: [{type: http, name: a, tunnel_hostname: a/b}]", "resources[0].tunnel_hostname"),
        ("resources: [{type: http, name: a, webhooks: {}}]", "resources[0].webhooks"),
        ("resources: [{type: http, name: a, webhooks: [x]}]", "resources[0].webhooks[0]"),
        ("resources: [{type: http, name: a, webhooks: [{path: /h}]}]", "resources[0].webhooks[0].methods"),
        ("resources: [{type: http, name: a, webhooks: [{path: /h, methods: ~}]}]", "resources[0].webhooks[0].methods"),
        (
            "resources: [{type: http, name: a, webhooks: [{path: /h, methods: POST}]}]",
            "resources[0].webhooks[0].methods",
        ),
        (
            "resources: [{type: http, name: a, webhooks: [{path: /h, methods: ['']}]}]",
            "resources[0].webhooks[0].methods[0]",
        ),
        ("resources: [{type: http, name: a, webhooks: [{methods: [GET]}]}]", "resources[0].webhooks[0].path"),
        ("resources: [{type: http, name: a, webhooks: [{path: h, methods: [GET]}]}]", "resources[0].webhooks[0].path"),
        (
            "resources: [{type: http, name: a, webhooks: [{path: /h, methods: [GET], source_cidrs: [10.0.0.0/33]}]}]",
            "resources[0].webhooks[0].source_cidrs[0]",
        ),
        ("listen: localhost:8081", "listen"),
        ("allow_insecure_http: 2", "allow_insecure_http"),
        ("update: text", "update"),
        ("update: {source: releases}", "update.source"),
        ("update: {source: http://mirror.example.com}", "update.source"),
        ("update: {api_url: nonsense}", "update.api_url"),
        ("update: {trusted_keys: RWQ}", "update.trusted_keys"),
        ("update: {trusted_keys: [RWQ]}", "update.trusted_keys[0]"),
        ("update: {trusted_keys: ['']}", "update.trusted_keys[0]"),
        ("update: {trusted_keys: [~]}", "update.trusted_keys[0]"),
        ("update: {required_signatures: 0}", "update.required_signatures"),
        ("update: {required_signatures: 1000}", "update.required_signatures"),
        ("update: {assume_api_version: '1.2'}", "update.assume_api_version"),
        ("update: {auto: perhaps}", "update.auto"),
        ("update: {window: Sat}", "update.window"),
        ("update: {health_timeout: 2h}", "update.health_timeout"),
        ("update: {drain_timeout: -1s}", "update.drain_timeout"),
        ("- a list", ""),
        ("text", ""),
    ] {
        let variables: &[(&str, &str)] = if yaml.starts_with("platform_url") { &[] } else { &[URL] };
        let invalid = read(yaml, variables).expect_err(yaml);
        assert!(invalid.problems.iter().any(|problem| problem.key == key), "{yaml}:\n{invalid}");
        assert!(invalid.problems.iter().all(|problem| problem.to_string().starts_with(FILE)), "{yaml}:\n{invalid}");
        assert!(!invalid.to_string().contains("s3cret"), "{invalid}");
    }
}

#[test]
fn wrong_values_in_variables_name_the_variable() {
    for (variable, value) in [
        ("BAMF_PLATFORM_URL", "bamf.example.com"),
        ("BAMF_AGENT_NAME", "Web.01"),
        ("BAMF_CLUSTER_INTERNAL", "TRUE"),
        ("BAMF_ALLOW_INSECURE_HTTP", "yes"),
        ("BAMF_DEBUG", "verbose"),
        ("BAMF_RESOURCES", "a:ssh:h:70000"),
        ("BAMF_RESOURCES", "a b:ssh:h:22"),
        ("BAMF_RESOURCES", "a:ssh:h:22,a:ssh:i:22"),
        ("BAMF_HEARTBEAT_INTERVAL", "0"),
        ("BAMF_HEARTBEAT_INTERVAL", "121s"),
        ("BAMF_HEARTBEAT_INTERVAL", "1d"),
        ("BAMF_RECONNECT_BASE_DELAY", "-1s"),
        ("BAMF_RECONNECT_BASE_DELAY", "10m"),
        ("BAMF_RECONNECT_MAX_DELAY", "1ms"),
        ("BAMF_RECONNECT_MAX_DELAY", "100h"),
        ("BAMF_UPDATE_SOURCE", "ftp://x"),
        ("BAMF_UPDATE_API_URL", "x"),
        ("BAMF_UPDATE_TRUSTED_KEYS", ","),
        ("BAMF_UPDATE_TRUSTED_KEYS", "RWQ"),
        ("HTTPS_PROXY", "socks5://me:s3cret@proxy"),
        ("ALL_PROXY", "http://me:s3cret@"),
        ("http_proxy", "http://me:s3cret@ho st"),
        ("KUBERNETES_SERVICE_PORT", "http"),
        ("BAMF_RUNTIME_DIR", "run"),
        ("RUNTIME_DIRECTORY", "run"),
    ] {
        let variables =
            if variable == "BAMF_PLATFORM_URL" { vec![(variable, value)] } else { vec![URL, (variable, value)] };
        let invalid = read("", &variables).expect_err(variable);
        assert!(invalid.to_string().starts_with(&format!("{variable}: ")), "{invalid}");
        assert!(!invalid.to_string().contains("s3cret"), "{invalid}");
    }
}

#[test]
fn unknown_keys_are_warnings_with_the_nearest_known_key() {
    let yaml = "\
platfrom_url: x
resources: [{name: a, type: tcp, hostnam: h, port: 1}]
update: {windows: x}
heartbeat_interval: 5s
";
    let shown = warnings(yaml, &[]);
    for part in [
        "/etc/bamf/agent.yaml:1:1: platfrom_url: unknown key, ignored; the nearest known key is platform_url",
        "/etc/bamf/agent.yaml:4:1: heartbeat_interval: cannot stand in the file and is ignored; the environment variable \
         BAMF_HEARTBEAT_INTERVAL sets it",
        "/etc/bamf/agent.yaml:2:34: resources[0].hostnam: unknown key, ignored; the nearest known key is resources[].hostname",
        "/etc/bamf/agent.yaml:3:10: update.windows: unknown key, ignored; the nearest known key is update.window",
    ] {
        assert!(shown.iter().any(|line| line == part), "{part}\n{shown:#?}");
    }
}

#[test]
fn what_works_but_is_probably_not_meant_is_a_warning() {
    for (yaml, variables, part) in [
        ("zone: mars", [("", "")], "zone: \"mars\" is none of"),
        ("data_dir: data", [("", "")], "depends on the working directory"),
        ("resources: [{type: ssh, name: my_db, hostname: h}]", [("", "")], "resources[0].name: \"my_db\" is not"),
        ("resources: [{type: redis, name: a, hostname: h, port: 1}]", [("", "")], "unknown type"),
        ("resources: [{type: tcp, name: a, hostname: h}]", [("", "")], "resources[0].port: is not set"),
        ("resources: [{type: ssh, name: a}]", [("", "")], "resources[0].hostname: is not set"),
        ("resources: [{type: kubernetes, name: a}]", [("", "")], "inside the cluster"),
        (
            "resources: [{type: http, name: a, hostname: h, webhooks: [{path: /, methods: []}]}]",
            [("", "")],
            "lets nothing",
        ),
        ("resources: {http: {name: a, hostname: h, webhooks: []}}", [("", "")], "no effect in this form"),
        ("resources: {http: {name: a, hostname: h, type: ssh}}", [("", "")], "the key above is the type"),
        ("", [("BAMF_RESOURCES", "a:http:h:80")], "browsers cannot reach it"),
        ("", [("BAMF_RESOURCES", "a:ssh:h:22:x")], "more than four parts"),
        ("", [("BAMF_RESOURCES", "a:ssh:h")], "is left out"),
        ("", [("BAMF_LABELS", "a=b,c")], "\"c\" has no name and = and is left out"),
        ("", [("BAMF_ZONES", "public")], "did you mean BAMF_ZONE?"),
    ] {
        let shown = warnings(yaml, &variables);
        assert!(shown.iter().any(|line| line.contains(part)), "{part}: {shown:?}");
    }
}

#[test]
fn resources_get_the_defaults_of_their_type() {
    let yaml = "\
resources:
  - {name: web, type: http, hostname: w, labels: {managed-by: bamf}}
  - {name: own, type: https, host: '[::1]', hostname: , port: 0, tunnel_hostname: t, forward_session_token: on, dial: eager}
  - {name: off, type: http-audit, hostname: w, labels: {managed-by: bamf}, forward_session_token: no}
  - {name: sub, type: mysql-audit, hostname: a, host: b}
  - {name: new, type: redis, hostname: h, port: 6379}
  - name: hook
    type: http
    hostname: h
    webhooks: [{path: /hook, methods: [post, GET], source_cidrs: [192.0.2.0/24, '2001:db8::/32', 10.1.2.3]}]
";
    let resources = config(yaml, &[]).resources;
    let shown: Vec<_> = resources
        .iter()
        .map(|r| {
            let tunnel = r.tunnel_hostname.as_deref().unwrap_or("-");
            format!("{} {}:{} {tunnel} {} {:?}", r.name, r.hostname, r.port, r.forward_session_token, r.dial)
        })
        .collect();
    assert_eq!(
        shown,
        [
            "web w:80 web true Auto",
            "own ::1:443 t true Eager",
            "off w:80 off false Auto",
            "sub a:3306 - false Auto",
            "new h:6379 - false Auto",
            "hook h:80 hook false Auto",
        ]
    );
    assert_eq!(resources[5].webhooks[0].methods, ["post", "GET"]);
    assert_eq!(resources[5].webhooks[0].source_cidrs, ["192.0.2.0/24", "2001:db8::/32", "10.1.2.3"]);
}

#[test]
fn aliases_and_merge_keys_work_where_values_do() {
    let yaml = "\
base: &base {type: ssh, labels: {env: prod}}
resources: &all
  - {<<: *base, name: a, hostname: h}
  - {<<: *base, name: b, hostname: i, type: postgres}
";
    let resources = config(yaml, &[]).resources;
    assert_eq!((resources[0].port, resources[1].port, resources[1].labels["env"].as_str()), (22, 5432, "prod"));
}

#[test]
fn plain_http_needs_leave_for_every_address() {
    let yaml = "platform_url: http://api.cluster:8000\nupdate: {source: http://mirror, api_url: http://github.local}\n";
    assert_eq!(read(yaml, &[]).unwrap_err().problems.len(), 3);
    for (yaml, variables) in [
        (format!("{yaml}allow_insecure_http: true\n"), vec![]),
        (yaml.to_owned(), vec![("BAMF_ALLOW_INSECURE_HTTP", "true")]),
    ] {
        assert!(read(&yaml, &variables).unwrap().config.allow_insecure_http);
    }
}

#[test]
fn trusted_keys_are_checked_and_counted_once_each() {
    let (one, two) = (public_key(1), public_key(2));
    let yaml = format!("update: {{trusted_keys: [{one}, {two}, {one}], required_signatures: 2}}\n");
    let loaded = loaded(&yaml, &[]);
    assert_eq!(loaded.config.update.trusted_keys, [one.clone(), two.clone()]);
    assert_eq!(loaded.warnings.len(), 1);
    let variables = [("BAMF_UPDATE_TRUSTED_KEYS", format!("{two}, {one}"))];
    let variables = variables.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(config("update: {required_signatures: 2}", &variables).update.trusted_keys, [two, one]);
    // The same key under two key numbers is one key, and cannot sign twice.
    let mut bytes = vec![1; 42];
    bytes[..3].copy_from_slice(b"Edx");
    let renumbered = base64::engine::general_purpose::STANDARD.encode(bytes);
    let yaml = format!("update: {{trusted_keys: [{}, {renumbered}], required_signatures: 2}}", public_key(1));
    assert!(problems(&yaml, &[])[0].contains("required_signatures"), "{yaml}");
}

#[test]
fn kubernetes_opens_the_health_port_and_brings_its_names() {
    let config = config("", &[("KUBERNETES_SERVICE_HOST", "10.96.0.1"), ("POD_NAMESPACE", "bamf")]);
    assert!(config.kubernetes);
    assert_eq!(config.listen.to_string(), "0.0.0.0:8081");
    assert_eq!(config.cluster.cert_secret_name, "bamf-agent-certs");
    assert_eq!(config.cluster.namespace.as_deref(), Some("bamf"));
    assert_eq!((config.cluster.api_host.as_deref(), config.cluster.api_port), (Some("10.96.0.1"), 443));
}

#[test]
fn flags_win_over_variables() {
    let environment =
        Environment::from_pairs([URL, ("BAMF_RUNTIME_DIR", "/run/env"), ("RUNTIME_DIRECTORY", "/run/a:/run/b")]);
    let overrides = Overrides { config: None, debug: true, runtime_dir: Some("/run/flag".into()) };
    let loaded = interpret(None, &overrides, &environment).unwrap();
    assert_eq!((loaded.config.debug, loaded.config.runtime_dir.as_path()), (true, Path::new("/run/flag")));
    let environment_only = interpret(None, &Overrides::default(), &environment).unwrap().config;
    assert_eq!((environment_only.debug, environment_only.runtime_dir.as_path()), (false, Path::new("/run/env")));
    let systemd = Environment::from_pairs([URL, ("RUNTIME_DIRECTORY", "/run/a:/run/b")]);
    assert_eq!(interpret(None, &Overrides::default(), &systemd).unwrap().config.runtime_dir, Path::new("/run/a"));
    let long = Overrides { runtime_dir: Some(format!("/{}", "x".repeat(96)).into()), ..Overrides::default() };
    assert!(interpret(None, &long, &environment).unwrap_err().to_string().starts_with("--runtime-dir: runtime_dir"));
}

#[test]
fn the_proxy_variables_are_read_in_their_order() {
    let expose = |secret: Option<Secret>| secret.map(|secret| secret.expose().to_owned());
    let upper = [("HTTPS_PROXY", "http://one"), ("https_proxy", "http://two"), ("ALL_PROXY", "http://three")];
    for (skip, expected) in [(0, "http://one"), (1, "http://two"), (2, "http://three")] {
        assert_eq!(expose(config("", &upper[skip..]).network.https_proxy).as_deref(), Some(expected));
    }
    // A CGI caller can set HTTP_PROXY with a Proxy: header.
    assert_eq!(expose(config("", &[("HTTP_PROXY", "http://evil")]).network.http_proxy), None);
    let rest = config("", &[("http_proxy", "p:3128"), ("no_proxy", "a,b"), ("SSL_CERT_FILE", "/etc/ca.pem")]).network;
    assert_eq!(expose(rest.http_proxy).as_deref(), Some("http://p:3128"));
    assert_eq!((rest.no_proxy.as_deref(), rest.extra_roots.as_deref()), (Some("a,b"), Some(Path::new("/etc/ca.pem"))));
}

// --- showing -----------------------------------------------------------------

#[test]
fn show_names_the_origin_of_every_value_and_masks_secrets() {
    let yaml = "\
agent_name: demo
join_token: s3cret-1
labels: {env: prod}
resources:
  - name: db
    type: postgres
    hostname: db.internal
";
    let variables = [
        ("BAMF_ZONE", "public"),
        ("GITHUB_TOKEN", "s3cret-2"),
        ("HTTPS_PROXY", "http://u:s3cret-3@p"),
        ("BAMF_LABELS", "x=y"),
    ];
    let loaded = loaded(yaml, &variables);
    let rows: Vec<_> = loaded.show().iter().map(|row| format!("{}={} [{}]", row.key, row.value, row.origin)).collect();
    for expected in [
        "config_file=/etc/bamf/agent.yaml [default]",
        "platform_url=https://bamf.test [BAMF_PLATFORM_URL]",
        "join_token=*** [/etc/bamf/agent.yaml:2]",
        "agent_name=demo [/etc/bamf/agent.yaml:1]",
        "zone=public [BAMF_ZONE]",
        "labels.env=prod [/etc/bamf/agent.yaml:3]",
        "labels.x=y [BAMF_LABELS]",
        "resources[0].name=db [/etc/bamf/agent.yaml:5]",
        "resources[0].port=5432 [default]",
        "update.github_token=*** [GITHUB_TOKEN]",
        "network.https_proxy=*** [HTTPS_PROXY]",
        "data_dir=/var/lib/bamf-agent [default]",
    ] {
        assert!(rows.iter().any(|row| row == expected), "{expected}\n{rows:#?}");
    }
    assert!(!format!("{loaded:?} {rows:?}").contains("s3cret"));
    let by_host = self::loaded("", &[]).show();
    assert!(by_host.iter().any(|row| row.key == "agent_name" && row.origin == "host name"));
}

// --- hostile input -----------------------------------------------------------

#[test]
fn a_broken_file_is_the_only_problem_that_is_told() {
    let invalid = read("a: [\n", &[("BAMF_DATA_DIR", "/d"), ("BAMF_RUNTIME_DIR", "/r")]).unwrap_err();
    assert_eq!(invalid.problems.len(), 1, "{invalid}");
    assert_eq!((invalid.data_dir.as_path(), invalid.runtime_dir.as_path()), (Path::new("/d"), Path::new("/r")));
}

#[test]
fn thousands_of_problems_are_counted_and_not_printed() {
    let yaml = format!("resources:\n{}", "  - x\n".repeat(10_000));
    let shown = read(&yaml, &[URL]).unwrap_err().to_string();
    assert!(shown.lines().count() < 60 && shown.ends_with("and 9950 more problems"), "{shown}");
}

#[test]
fn secrets_do_not_appear_in_messages_about_them() {
    for (yaml, variables) in [
        ("join_token: [s3cret]", vec![]),
        ("join_token: {a: s3cret}", vec![]),
        ("join_token: s3cret ${", vec![]),
        ("listen: ${S}", vec![("S", "s3cret")]),
        ("platform_url: https://${S}@x", vec![("S", "s3cret")]),
        ("resources: [{name: '${S}', type: ssh}]", vec![("S", "s3cret/ x")]),
        ("update: {source: 'https://x:s3cret@host'}", vec![URL]),
    ] {
        let invalid = read(yaml, &variables).expect_err(yaml);
        assert!(!format!("{invalid} {invalid:?}").contains("s3cret"), "{invalid}");
    }
}

#[test]
fn thousands_of_warnings_are_counted_and_not_kept() {
    let unknown: String = (0..10_000).map(|index| format!("unknown{index}: x\n")).collect();
    let loaded = loaded(&unknown, &[]);
    assert_eq!((loaded.warnings.len(), loaded.further_warnings), (50, 9_950));
}

#[test]
fn a_missing_file_that_is_named_leaves_a_configuration_by_the_environment_alone() {
    let overrides = Overrides { config: Some("/nowhere/agent.yaml".into()), ..Overrides::default() };
    let loaded = load(&overrides, &Environment::from_pairs([URL])).unwrap();
    assert_eq!((loaded.warnings.len(), loaded.config.file), (2, None), "{:?}", loaded.warnings);
    let invalid = load(&overrides, &Environment::default()).unwrap_err();
    assert_eq!(invalid.problems.len(), 1, "{invalid}");
}

/// A key, a value of a kind that it may or may not want, nested anyhow.
fn any_yaml() -> impl Strategy<Value = String> {
    let leaves: Vec<&'static str> = keys::ALL.iter().map(|key| key.leaf()).collect();
    let scalar = prop_oneof![
        Just("~".to_owned()),
        "[a-z0-9:/.${}-]{0,12}".prop_map(|text| format!("'{text}'")),
        "-?[0-9]{1,20}",
        Just("${SET}".to_owned()),
        Just("yes".to_owned()),
    ];
    let value = scalar.prop_recursive(4, 40, 6, move |inner| {
        let pair = (proptest::sample::select(leaves.clone()), inner.clone())
            .prop_map(|(key, value)| format!("'{key}': {value}"));
        prop_oneof![
            proptest::collection::vec(inner, 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
            proptest::collection::btree_set(pair, 0..6)
                .prop_map(|pairs| format!("{{{}}}", pairs.into_iter().collect::<Vec<_>>().join(", "))),
        ]
    });
    let top: Vec<&'static str> = keys::in_map("").collect();
    proptest::collection::vec((proptest::sample::select(top), value), 0..8)
        .prop_map(|pairs| pairs.iter().map(|(key, value)| format!("{key}: {value}\n")).collect())
}

proptest! {
    #[test]
    fn no_file_and_no_variable_makes_loading_panic(
        yaml in prop_oneof![any_yaml(), "\\PC{0,80}"],
        which in 0..keys::ALL.len(),
        value in "\\PC{0,40}",
    ) {
        let variable = keys::ALL[which].variables.first().copied().unwrap_or("SET");
        match read(&yaml, &[(variable, &value), ("SET", "text")]) {
            Ok(loaded) => prop_assert!(!loaded.show().is_empty()),
            Err(invalid) => prop_assert!(!invalid.problems.is_empty() && !invalid.to_string().is_empty()),
        }
    }

    #[test]
    fn a_join_token_is_shown_nowhere(token in "[a-z]{12,40}", rest in any_yaml()) {
        let yaml = format!("join_token: {token}\n{}", rest.replace("join_token", "zone"));
        let shown = match read(&yaml, &[URL]) {
            Ok(loaded) => format!("{loaded:?} {:?}", loaded.show()),
            Err(invalid) => format!("{invalid} {invalid:?}"),
        };
        prop_assert!(!shown.contains(&token));
    }
}
