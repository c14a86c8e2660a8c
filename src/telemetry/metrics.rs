//! Prometheus metrics in text format 0.0.4, the Go agent's names kept (protocol 10.2).

use prometheus::{Encoder, Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Content type of the answer, as the Go agent sends it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every metric of the agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Sessions, those that wait for a redial included.
    pub active_tunnels: IntGauge,
    /// 1 while any relay connection is open.
    pub active_relay: IntGauge,
    /// 1 while registered and connected.
    pub connected: IntGauge,
    /// Heartbeats by outcome.
    pub heartbeats: IntCounterVec,
    /// Event streams that were opened.
    pub stream_opens: IntCounter,
    /// Renewals by outcome.
    pub renewals: IntCounterVec,
    /// End of the certificate's validity, Unix seconds.
    pub certificate_expiry: Gauge,
}

impl Metrics {
    /// A fresh set for one agent.
    ///
    /// # Errors
    /// A name is not valid or taken twice, which a test rules out.
    pub fn new(version: &str) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let counters = |name: &str, help: &str| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), &["outcome"])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let build = IntGauge::with_opts(
            Opts::new("bamf_agent_build_info", "Always 1; the label names the version.")
                .const_label("version", version),
        )?;
        build.set(1);
        registry.register(Box::new(build))?;
        let stream_opens =
            IntCounter::new("bamf_agent_event_stream_opens_total", "Event streams opened since the start.")?;
        registry.register(Box::new(stream_opens.clone()))?;
        let certificate_expiry = Gauge::new(
            "bamf_agent_certificate_expiry_timestamp_seconds",
            "End of the identity certificate's validity, Unix time.",
        )?;
        registry.register(Box::new(certificate_expiry.clone()))?;
        Ok(Self {
            active_tunnels: gauge("bamf_agent_active_tunnels", "Sessions, those that wait for a redial included.")?,
            active_relay: gauge("bamf_agent_active_relay", "1 while any relay connection is open.")?,
            connected: gauge("bamf_agent_connected", "1 while registered and connected to the platform.")?,
            heartbeats: counters("bamf_agent_heartbeats_total", "Heartbeats by outcome.")?,
            renewals: counters("bamf_agent_certificate_renewals_total", "Certificate renewals by outcome.")?,
            registry,
            stream_opens,
            certificate_expiry,
        })
    }

    /// The text that a scrape gets.
    #[must_use]
    pub fn render(&self) -> Vec<u8> {
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "the metrics cannot be written");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_go_agents_gauges_are_there_without_labels() {
        let metrics = Metrics::new("1.2.0").unwrap();
        let text = String::from_utf8(metrics.render()).unwrap();
        for line in ["bamf_agent_active_tunnels 0", "bamf_agent_active_relay 0"] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
        assert!(text.contains(r#"bamf_agent_build_info{version="1.2.0"} 1"#));
    }
}
