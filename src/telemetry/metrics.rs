//! Prometheus metrics in text format 0.0.4, the Go agent's names kept (protocol 10.2).

use prometheus::{Encoder, Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// Content type of the answer, as the Go agent sends it.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Every metric of the agent.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Sessions and what they carry.
    pub sessions: SessionMetrics,
    /// 1 while any relay connection is open.
    pub active_relay: IntGauge,
    /// Web requests through the relay.
    pub relay: RelayMetrics,
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
            sessions: SessionMetrics::registered(&registry)?,
            relay: RelayMetrics::registered(&registry)?,
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

/// Sessions and what they carry.
#[derive(Clone, Debug)]
pub struct SessionMetrics {
    /// Open sessions, those that wait for a redial included.
    pub active: IntGauge,
    /// Sessions opened since the start.
    pub opened: IntCounter,
    /// Sessions that were taken over whole from the process before.
    pub adopted: IntCounter,
    /// Sessions of the process before that were not, or not whole.
    pub lost: IntCounter,
    /// Sessions that were refused.
    pub refused: IntCounter,
    /// Redials that were begun.
    pub redials: IntCounter,
    /// Bytes from targets to clients.
    pub sent: IntCounter,
    /// Bytes from clients to targets.
    pub received: IntCounter,
    /// Bytes that were sent again after a connection was lost.
    pub repeated: IntCounter,
    /// How often a target had to wait for a client's acknowledgement.
    pub blocked: IntCounter,
    /// Targets that could not be reached.
    pub unreachable: IntCounter,
}

impl SessionMetrics {
    /// Counters that nobody scrapes.
    ///
    /// # Panics
    /// Never: the names are constant and valid.
    #[must_use]
    pub fn unregistered() -> Self {
        Self::registered(&Registry::new()).expect("the names are valid and different")
    }

    fn registered(registry: &Registry) -> prometheus::Result<Self> {
        let active = IntGauge::new("bamf_agent_active_tunnels", "Sessions, those that wait for a redial included.")?;
        registry.register(Box::new(active.clone()))?;
        let counter = |name: &str, help: &str| -> prometheus::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let bytes = IntCounterVec::new(
            Opts::new("bamf_agent_session_bytes_total", "Bytes carried for sessions, by direction."),
            &["direction"],
        )?;
        registry.register(Box::new(bytes.clone()))?;
        Ok(Self {
            active,
            opened: counter("bamf_agent_sessions_opened_total", "Sessions opened since the start.")?,
            adopted: counter("bamf_agent_sessions_adopted_total", "Sessions taken over from the process before.")?,
            lost: counter(
                "bamf_agent_sessions_lost_total",
                "Sessions that could not be taken over from the process before.",
            )?,
            refused: counter("bamf_agent_sessions_refused_total", "Sessions refused since the start.")?,
            redials: counter("bamf_agent_session_redials_total", "Further bridge connections that were begun.")?,
            sent: bytes.with_label_values(&["to_client"]),
            received: bytes.with_label_values(&["to_target"]),
            repeated: counter(
                "bamf_agent_stream_retransmitted_bytes_total",
                "Bytes that were sent again after a bridge connection was lost.",
            )?,
            blocked: counter(
                "bamf_agent_stream_blocked_total",
                "How often a target had to wait for a client's acknowledgements.",
            )?,
            unreachable: counter("bamf_agent_targets_unreachable_total", "Targets that could not be reached.")?,
        })
    }
}

/// Web requests through the relay, whose own counters are copied when somebody asks.
#[derive(Clone, Debug)]
pub struct RelayMetrics {
    requests: IntCounterVec,
    bytes: IntCounterVec,
    in_flight: IntGauge,
    connections: IntGauge,
}

impl RelayMetrics {
    fn registered(registry: &Registry) -> prometheus::Result<Self> {
        let counters = |name: &str, help: &str, label: &str| -> prometheus::Result<IntCounterVec> {
            let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let gauge = |name: &str, help: &str| -> prometheus::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        Ok(Self {
            requests: counters(
                "bamf_agent_relay_requests_total",
                "Web requests by outcome: the target's answer by class, the agent's own, or cut off.",
                "outcome",
            )?,
            bytes: counters("bamf_agent_relay_bytes_total", "Bytes of relay connections, by direction.", "direction")?,
            in_flight: gauge("bamf_agent_relay_requests_in_flight", "Web requests under way.")?,
            connections: gauge("bamf_agent_relay_connections", "Relay connections that can take a request.")?,
        })
    }

    /// Takes over a reading.
    pub fn show(&self, reading: &crate::relay::counters::Reading, connections: usize) {
        let set = |counters: &IntCounterVec, label: &str, value: u64| {
            let counter = counters.with_label_values(&[label]);
            counter.inc_by(value.saturating_sub(counter.get()));
        };
        for (label, value) in ["1xx", "2xx", "3xx", "4xx", "5xx"].iter().zip(reading.relayed) {
            set(&self.requests, label, value);
        }
        set(&self.requests, "agent", reading.answered);
        set(&self.requests, "cut_off", reading.truncated);
        set(&self.bytes, "from_bridge", reading.from_bridge);
        set(&self.bytes, "to_bridge", reading.to_bridge);
        self.in_flight.set(reading.in_flight);
        self.connections.set(i64::try_from(connections).unwrap_or(i64::MAX));
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
