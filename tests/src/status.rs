//! `meshnode status --json`, read as a program would read it.

use serde_json::Value;

/// One report.
#[derive(Clone, Debug)]
pub struct Status(pub Value);

impl Status {
    /// Returns a counter of the kernel side or the proxy; 0 where it never counted.
    pub fn counter(&self, name: &str) -> u64 {
        self.0["counters"][name].as_u64().unwrap_or(0)
    }

    /// Returns how often flows of `direction` (`inbound`, `outbound`) ended for `reason`.
    pub fn ended(&self, direction: &str, reason: &str) -> u64 {
        self.counter(&format!("{direction}_{}", reason.replace('-', "_")))
    }

    /// Returns the live flows between two services.
    pub fn flows(&self, source: &str, destination: &str) -> Vec<&Value> {
        between(&self.0["flows"], source, destination)
    }

    /// Returns the flows between two services that ended or were denied, the newest first.
    pub fn recent(&self, source: &str, destination: &str) -> Vec<&Value> {
        between(&self.0["recent"], source, destination)
    }

    /// Returns every live flow.
    pub fn all_flows(&self) -> &[Value] {
        list(&self.0["flows"])
    }

    pub fn list(&self, key: &str) -> &[Value] {
        list(&self.0[key])
    }

    /// Returns the entry of the list `key` whose `field` is `value`.
    pub fn entry(&self, key: &str, field: &str, value: &str) -> Option<&Value> {
        self.list(key).iter().find(|entry| entry[field] == value)
    }

    /// Returns the programs that are attached, the kernel says.
    pub fn attached(&self) -> Vec<&str> {
        let all = self.list("attachments").iter().filter(|a| a["state"] == "attached");
        all.filter_map(|a| a["program"].as_str()).collect()
    }

    /// Returns the service's certificate's serial number.
    pub fn serial(&self, service: &str) -> Option<&str> {
        self.entry("certificates", "service", service)?["serial"].as_str()
    }

    pub fn pid(&self) -> i32 {
        let pid = self.0["pid"].as_i64().expect("status has the daemon's pid");
        i32::try_from(pid).expect("a pid")
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn between<'a>(flows: &'a Value, source: &str, destination: &str) -> Vec<&'a Value> {
    list(flows).iter().filter(|f| f["source"] == source && f["destination"] == destination).collect()
}
