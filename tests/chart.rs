//! The chart, rendered by Helm's own engine and judged by the schemas of Kubernetes, and the recipe of the image.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bamf_agent::config::{Config, Document, Environment, Origin, Overrides, interpret};
use bamf_lab::machine::report_skipped;
use serde_json::{Value, json};

/// The oldest that the chart allows, and the newest that there is a schema for.
const VERSIONS: [&str; 2] = ["1.25", "1.37"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What came out of a chart.
#[derive(Debug)]
struct Rendered {
    documents: Vec<Value>,
    notes: String,
}

impl Rendered {
    fn all(&self, kind: &str) -> Vec<&Value> {
        self.documents.iter().filter(|document| document["kind"] == kind).collect()
    }

    #[track_caller]
    fn one(&self, kind: &str) -> &Value {
        let all = self.all(kind);
        assert_eq!(all.len(), 1, "{kind} in {:?}", self.names());
        all[0]
    }

    fn names(&self) -> Vec<String> {
        let name = |document: &Value| {
            format!("{} {}", document["kind"].as_str().unwrap(), document["metadata"]["name"].as_str().unwrap())
        };
        let mut names: Vec<String> = self.documents.iter().map(name).collect();
        names.sort();
        names
    }

    fn pod(&self) -> &Value {
        &self.one("Deployment")["spec"]["template"]["spec"]
    }

    /// The agent's own reading of its file; there must be nothing to complain about.
    fn config(&self) -> Config {
        let text = self.one("ConfigMap")["data"]["agent.yaml"].as_str().unwrap().to_owned();
        let path = Path::new("agent.yaml").into();
        let document = Document { path, named_by: Origin::Default, text };
        let environment = Environment::from_pairs([("KUBERNETES_SERVICE_HOST", "10.0.0.1"), ("BAMF_JOIN_TOKEN", "t")]);
        let loaded = interpret(Some(&document), &Overrides::default(), &environment);
        let loaded = loaded.unwrap_or_else(|invalid| panic!("{invalid}\n{}", document.text));
        assert!(loaded.warnings.is_empty(), "{:?}\n{}", loaded.warnings, document.text);
        loaded.config
    }
}

/// A program that scripts/setup has installed, or a note by the test's name that it has not.
fn tool(test: &str, name: &str) -> Option<PathBuf> {
    let tools = root().join("target/chart-tools");
    if !tools.join("requirements.txt").exists() {
        report_skipped(test, "scripts/setup has not installed target/chart-tools");
        return None;
    }
    Some(tools.join("bin").join(name))
}

/// Renders the chart for the release `bamf` in the namespace `edge`; the error is Helm's. `None` where Helm is missing.
fn render(test: &str, values: &Value) -> Option<Result<Rendered, String>> {
    let python = tool(test, "python")?;
    let request = json!({
        "chart": root().join("packaging/helm/bamf-agent"), "name": "bamf", "namespace": "edge",
        "values": values, "versions": VERSIONS,
    });
    let mut command = Command::new(python);
    command.arg(root().join("tests/chart/render.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let mut answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    if let Some(error) = answer["error"].as_str() {
        return Some(Err(error.to_owned()));
    }
    assert_eq!(answer["findings"], json!([]), "{values}");
    let documents = answer["documents"].as_array_mut().map(std::mem::take).unwrap();
    Some(Ok(Rendered { documents, notes: answer["notes"].as_str().unwrap().to_owned() }))
}

/// The least that must be set, with `changes` to the section `agent`.
fn minimal(changes: &Value) -> Value {
    let mut values = json!({"agent": {
        "config": {"name": "edge-1"}, "joinTokenSecret": "token", "platformUrl": "https://bamf.example.com",
    }});
    merge(&mut values["agent"], changes);
    values
}

fn merge(into: &mut Value, changes: &Value) {
    match changes.as_object().filter(|_| into.is_object()) {
        Some(map) => map.iter().for_each(|(key, value)| merge(&mut into[key], value)),
        None => *into = changes.clone(),
    }
}

fn everything() -> Value {
    let mut values = minimal(&json!({
        "replicas": 3,
        "image": {"repository": "registry.example/agent", "tag": "v1.2.0", "pullPolicy": "Always"},
        "config": {"labels": {"site": "ams", "flag": "yes", "number": "5"}, "resources": [
            {"name": "db", "type": "postgres", "hostname": "db.internal", "labels": {"env": "prod"}},
            {"name": "ci", "type": "http", "host": "ci.internal", "port": 8080, "tunnel_hostname": "ci-web",
             "webhooks": [{"path": "/hooks/", "methods": ["POST"], "source_cidrs": ["192.0.2.0/24"]}],
             "forward_session_token": true, "dial": "eager"},
            {"name": "k8s", "type": "kubernetes", "hostname": "kubernetes.default.svc", "port": 443},
        ]},
        "joinToken": "bamf_0123", "joinTokenSecret": "", "joinTokenKey": "join.token",
        "platformUrl": "http://bamf-api:8000", "allowInsecureHttp": true, "clusterInternal": true, "zone": "in-cluster",
        "kubernetes": {"impersonation": {"enabled": true}},
        "dataDir": "/data",
        "serviceAccount": {"annotations": {"example.com/role": "x"}},
        "autoscaling": {"enabled": true, "targetTunnelsPerPod": 20},
        "pdb": {"minAvailable": "50%"},
        "terminationGracePeriodSeconds": 600,
        "resources": {"limits": {"cpu": 1}},
        "podAnnotations": {"a": "b"}, "podLabels": {"team": "edge"}, "priorityClassName": "high",
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
        "podSecurityContext": {"fsGroup": 7}, "securityContext": {"runAsUser": 7},
        "nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "edge", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
        "extraEnvFrom": [{"configMapRef": {"name": "more"}}],
        "extraVolumes": [{"name": "roots", "configMap": {"name": "roots"}}],
        "extraVolumeMounts": [{"name": "roots", "mountPath": "/roots"}],
    }));
    values["global"] = json!({"imageRegistry": "mirror.example", "imagePullSecrets": [{"name": "pull"}], "other": 1});
    values
}

#[test]
fn the_least_that_can_be_set_gives_objects_that_kubernetes_takes_with_the_names_of_the_protocol() {
    let test = "the_least_that_can_be_set_gives_objects_that_kubernetes_takes_with_the_names_of_the_protocol";
    let Some(rendered) = render(test, &minimal(&json!({}))) else { return };
    let rendered = rendered.unwrap();
    let kinds = ["ConfigMap", "Deployment", "PodDisruptionBudget", "Role", "RoleBinding", "ServiceAccount"];
    assert_eq!(rendered.names(), kinds.map(|kind| format!("{kind} bamf-agent")));
    assert!(rendered.documents.iter().all(|document| document["metadata"]["namespace"] == "edge"));
    assert!(rendered.notes.contains("edge/bamf-agent-certs") && rendered.notes.contains("replicas to 1"));
    assert_eq!(rendered.one("Deployment")["spec"]["replicas"], 2);
    let config = rendered.config();
    assert_eq!(config.agent_name, "edge-1");
    assert_eq!(config.platform_url.as_str(), "https://bamf.example.com/");
    assert_eq!(config.data_dir, Path::new("/var/lib/bamf-agent"));
}

#[test]
fn no_upgrade_can_wipe_the_identity_because_the_chart_does_not_render_its_secret() {
    let test = "no_upgrade_can_wipe_the_identity_because_the_chart_does_not_render_its_secret";
    for values in [minimal(&json!({})), everything()] {
        let Some(rendered) = render(test, &values) else { return };
        let rendered = rendered.unwrap();
        assert!(!rendered.names().contains(&"Secret bamf-agent-certs".to_owned()));
        let environment = &rendered.pod()["containers"][0]["env"];
        assert!(
            environment
                .as_array()
                .unwrap()
                .contains(&json!({"name": "BAMF_CERT_SECRET_NAME", "value": "bamf-agent-certs"}))
        );
    }
}

#[test]
fn the_agent_may_use_its_one_secret_and_nothing_else() {
    let test = "the_agent_may_use_its_one_secret_and_nothing_else";
    let own = json!({"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["bamf-agent-certs"],
        "verbs": ["get", "update", "patch"]});
    let create = json!({"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]});
    let cases = [
        (json!({}), Some(json!([own, create])), 0),
        (json!({"rbac": {"createSecret": false}}), Some(json!([own])), 0),
        (json!({"rbac": {"create": false}}), None, 0),
        (json!({"kubernetes": {"impersonation": {"enabled": true}}}), Some(json!([own, create])), 1),
    ];
    for (changes, rules, cluster_roles) in cases {
        let Some(rendered) = render(test, &minimal(&changes)) else { return };
        let rendered = rendered.unwrap();
        assert_eq!(rendered.all("Role").first().map(|role| role["rules"].clone()), rules, "{changes}");
        assert_eq!(rendered.all("ClusterRole").len(), cluster_roles);
        if cluster_roles == 1 {
            let role = rendered.one("ClusterRole");
            assert_eq!(role["metadata"]["name"], "bamf-agent-impersonator");
            let rules = json!([{"apiGroups": [""], "resources": ["users", "groups", "serviceaccounts"],
                "verbs": ["impersonate"]}]);
            assert_eq!(role["rules"], rules);
        }
        for binding in [rendered.all("RoleBinding"), rendered.all("ClusterRoleBinding")].concat() {
            let subject = json!([{"kind": "ServiceAccount", "name": "bamf-agent", "namespace": "edge"}]);
            assert_eq!(binding["subjects"], subject);
        }
        assert_eq!(rendered.notes.contains("--type=kubernetes.io/tls"), changes["rbac"]["createSecret"] == false);
    }
}

#[test]
fn every_value_arrives_where_it_belongs_and_the_agent_understands_all_of_it() {
    let test = "every_value_arrives_where_it_belongs_and_the_agent_understands_all_of_it";
    let Some(rendered) = render(test, &everything()) else { return };
    let rendered = rendered.unwrap();
    let config = rendered.config();
    assert_eq!((config.labels["flag"].as_str(), config.labels["number"].as_str()), ("yes", "5"));
    assert!(config.cluster_internal && config.zone.as_deref() == Some("in-cluster"));
    let ci = &config.resources[1];
    assert_eq!((ci.hostname.as_str(), ci.port, ci.tunnel_hostname.as_deref()), ("ci.internal", 8080, Some("ci-web")));
    assert_eq!((ci.webhooks[0].path.as_str(), ci.webhooks[0].source_cidrs[0].as_str()), ("/hooks/", "192.0.2.0/24"));
    assert!(ci.forward_session_token && ci.dial == bamf_agent::config::Dial::Eager);

    let deployment = rendered.one("Deployment");
    assert!(deployment["spec"].get("replicas").is_none(), "the autoscaler decides");
    let (pod, agent) = (rendered.pod(), &rendered.pod()["containers"][0]);
    assert_eq!(agent["image"], "mirror.example/registry.example/agent:v1.2.0");
    assert_eq!(pod["securityContext"]["fsGroup"], 7);
    assert_eq!(
        (&agent["securityContext"]["runAsUser"], &agent["securityContext"]["readOnlyRootFilesystem"]),
        (&7.into(), &true.into())
    );
    for (key, text) in [
        ("imagePullSecrets", "pull"),
        ("priorityClassName", "high"),
        ("nodeSelector", "ssd"),
        ("tolerations", "Exists"),
        ("topologySpreadConstraints", "maxSkew"),
        ("affinity", "nodeAffinity"),
        ("volumes", "roots"),
    ] {
        assert!(pod[key].to_string().contains(text), "{key}: {}", pod[key]);
    }
    for (key, text) in [
        ("env", "http://proxy:3128"),
        ("envFrom", "more"),
        ("volumeMounts", "/roots"),
        ("volumeMounts", "/data"),
        ("resources", "cpu"),
        ("env", "join.token"),
        ("imagePullPolicy", "Always"),
    ] {
        assert!(agent[key].to_string().contains(text), "{key}: {}", agent[key]);
    }
    let metadata = &deployment["spec"]["template"]["metadata"];
    assert_eq!((&metadata["labels"]["team"], &metadata["annotations"]["a"]), (&"edge".into(), &"b".into()));
    let secret = rendered.one("Secret");
    assert_eq!(
        (&secret["metadata"]["name"], &secret["data"]["join.token"]),
        (&"bamf-agent-join-token".into(), &"YmFtZl8wMTIz".into())
    );
    let elsewhere = rendered.documents.iter().filter(|document| document["kind"] != "Secret");
    assert!(!json!(elsewhere.collect::<Vec<_>>()).to_string().contains("bamf_0123"), "the token is in its Secret only");
    assert_eq!(rendered.one("PodDisruptionBudget")["spec"]["minAvailable"], "50%");
    let metrics = &rendered.one("HorizontalPodAutoscaler")["spec"]["metrics"];
    assert_eq!(metrics[1]["pods"]["metric"]["name"], "bamf_agent_active_tunnels");
    assert_eq!(rendered.one("ServiceAccount")["metadata"]["annotations"]["example.com/role"], "x");
}

#[test]
fn a_pod_is_locked_in_probed_and_has_time_to_drain() {
    let test = "a_pod_is_locked_in_probed_and_has_time_to_drain";
    for (grace, drain) in [(1800, 1770), (30, 0), (0, 0)] {
        let values = minimal(&json!({"terminationGracePeriodSeconds": grace}));
        let Some(rendered) = render(test, &values) else { return };
        let rendered = rendered.unwrap();
        assert_eq!(rendered.pod()["terminationGracePeriodSeconds"], grace);
        assert_eq!(rendered.config().update.drain_timeout.as_secs(), drain);
    }
    let rendered = render(test, &minimal(&json!({}))).unwrap().unwrap();
    let (pod, agent) = (rendered.pod(), &rendered.pod()["containers"][0]);
    let user = recipe().lines().find_map(|line| line.strip_prefix("USER ").map(str::to_owned)).unwrap();
    let security = &pod["securityContext"];
    assert_eq!(format!("{}:{}", security["runAsUser"], security["runAsGroup"]), user);
    assert_eq!(
        (&security["runAsNonRoot"], &security["seccompProfile"]["type"]),
        (&true.into(), &"RuntimeDefault".into())
    );
    let locked =
        json!({"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}});
    assert_eq!(agent["securityContext"], locked);
    assert_eq!(pod["automountServiceAccountToken"], true);
    // What is written to is a volume, since nothing else can be.
    let config = rendered.config();
    let mounts: Vec<_> =
        agent["volumeMounts"].as_array().unwrap().iter().map(|mount| mount["mountPath"].as_str().unwrap()).collect();
    for path in [&config.data_dir, &config.runtime_dir] {
        assert!(mounts.contains(&path.to_str().unwrap()), "{path:?}: {mounts:?}");
    }
    let port = u64::from(config.listen.port());
    assert!(config.listen.ip().is_unspecified() && agent["ports"][0]["containerPort"] == port);
    assert_eq!(agent["livenessProbe"]["httpGet"], json!({"path": "/health", "port": "metrics"}));
    assert_eq!(agent["readinessProbe"]["httpGet"], json!({"path": "/ready", "port": "metrics"}));
    let strategy = &rendered.one("Deployment")["spec"]["strategy"];
    assert_eq!(strategy["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 0}));
}

#[test]
fn values_that_nothing_reads_and_values_that_cannot_work_are_refused() {
    let test = "values_that_nothing_reads_and_values_that_cannot_work_are_refused";
    let resource = |resource: Value| json!({"config": {"resources": [resource]}});
    let cases = [
        (json!({"config": {"name": ""}}), "agent.config.name is required"),
        (json!({"platformUrl": ""}), "agent.platformUrl is required"),
        (json!({"joinTokenSecret": ""}), "agent.joinToken or agent.joinTokenSecret is required"),
        (json!({"serviceAccount": {"create": false}}), "agent.serviceAccount.name is required"),
        (json!({"replica": 1}), "replica"),
        (json!({"replicas": "two"}), "replicas"),
        (json!({"config": {"name": "Not Valid"}}), "name"),
        (json!({"config": {"token": "x"}}), "token"),
        (json!({"platformUrl": "bamf.example.com"}), "platformUrl"),
        (json!({"zone": "moon"}), "zone"),
        (json!({"dataDir": "data"}), "dataDir"),
        (json!({"image": {"pullPolicy": "Sometimes"}}), "pullPolicy"),
        (json!({"kubernetes": {"impersonate": true}}), "impersonate"),
        (resource(json!({"name": "a"})), "type"),
        (resource(json!({"name": "a", "type": "ssh", "port": 70000})), "port"),
        (resource(json!({"name": "a", "type": "ssh", "edge": "nl"})), "edge"),
        (resource(json!({"name": "a", "type": "http", "webhooks": [{"path": "/x"}]})), "methods"),
    ];
    for (changes, words) in cases {
        let Some(rendered) = render(test, &minimal(&changes)) else { return };
        let error = rendered.expect_err(words);
        assert!(error.contains(words), "{changes}: {error}");
    }
    let off = render(test, &minimal(&json!({"enabled": false}))).unwrap().unwrap();
    assert!(off.documents.is_empty() && off.notes.contains("nothing was installed"));
}

fn recipe() -> String {
    std::fs::read_to_string(root().join("packaging/Containerfile")).unwrap()
}

#[test]
fn the_image_is_built_with_the_pinned_compiler_for_kubernetes_and_runs_as_nobody_in_particular() {
    let recipe = recipe();
    let toolchain = std::fs::read_to_string(root().join("rust-toolchain.toml")).unwrap();
    let channel = toolchain.lines().find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"')).unwrap();
    assert!(recipe.contains(&format!("ARG RUST_VERSION={channel}\n")), "{channel}");
    assert!(recipe.contains("--locked") && recipe.contains("--features kubernetes"));
    let last = recipe.rsplit("\nFROM ").next().unwrap();
    assert!(last.starts_with("scratch\n"), "the last stage has nothing but what is copied into it");
    let user = last.lines().find_map(|line| line.strip_prefix("USER ")).unwrap();
    let (uid, gid) = user.split_once(':').unwrap();
    assert!(uid.parse::<u32>().unwrap() > 0 && gid.parse::<u32>().unwrap() > 0);
    // The marker that `update` looks for, and the authorities that the HTTP client does.
    for path in ["/image/usr/lib/bamf-agent/install-method", "/image/etc/ssl/certs/ca-certificates.crt"] {
        assert!(recipe.contains(path), "{path}");
    }
    assert!(!recipe.lines().any(|line| line.starts_with("ADD ")), "everything comes from the tree and from packages");
}

#[test]
fn a_checker_of_such_recipes_has_nothing_to_say_about_the_images() {
    let Some(hadolint) = tool("a_checker_of_such_recipes_has_nothing_to_say_about_the_images", "hadolint") else {
        return;
    };
    let output = Command::new(hadolint).arg("--no-color").arg(root().join("packaging/Containerfile")).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
}
