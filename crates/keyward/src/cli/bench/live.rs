//! What is seen while a bench runs: on a terminal a few lines that change, elsewhere a line now and then.

use std::cell::Cell;
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use keyward_env::{Env, RealEnv};
use keyward_load::Second;

/// Seconds whose goodput is drawn.
const DRAWN: usize = 40;
/// Between lines where no terminal is.
const LINE_EVERY: Duration = Duration::from_secs(5);
const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// One thing under way. Goes from the screen when it is dropped.
pub struct Live {
    bar: Option<ProgressBar>,
    what: String,
    all: usize,
    lasts: Duration,
    rates: Vec<f64>,
    told: Cell<Duration>,
}

impl Live {
    fn new(what: String, all: usize, lasts: Duration) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(all as u64);
            let style = ProgressStyle::with_template("{msg}");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar
        });
        let told = Cell::new(RealEnv.boot_now());
        Self { bar, what, all, lasts, rates: Vec::new(), told }
    }

    /// So many things, one after another.
    pub fn count(what: &str, all: usize) -> Self {
        Self::new(what.to_owned(), all, Duration::ZERO)
    }

    /// A load.
    pub fn load(lasts: Duration, rate: Option<f64>) -> Self {
        let what = rate.map_or("load".to_owned(), |rate| format!("load at {rate:.0}/s"));
        Self::new(what, 0, lasts)
    }

    /// So many are done.
    pub fn at(&self, done: usize) {
        self.say(&format!("{}: {done} of {}", self.what, self.all));
    }

    fn say(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.to_owned());
            return;
        }
        let now = RealEnv.boot_now();
        if now - self.told.get() >= LINE_EVERY {
            self.told.set(now);
            eprintln!("{}", text.lines().map(str::trim).collect::<Vec<_>>().join(", "));
        }
    }

    /// One second of a load.
    pub fn second(&mut self, second: &Second) {
        let answered = second.rate(second.counts.answered);
        self.rates.push(answered);
        let at = (second.at + second.lasted).as_secs_f64();
        let latency = |quantile| second.answered.value_at_quantile(quantile) as f64 / 1000.0;
        let mut text = String::new();
        if self.bar.is_some() {
            text = format!("{}  goodput, second by second\n", drawn(&self.rates));
        }
        text.push_str(&format!(
            "{} {at:.0} s of {:.0} s: offered {:.0}/s, answered {answered:.0}/s, in flight {}\n",
            self.what,
            self.lasts.as_secs_f64(),
            second.rate(second.offered),
            second.in_flight
        ));
        text.push_str(&match second.answered.is_empty() {
            true => "no answers\n".to_owned(),
            false => format!(
                "p50 {:.2} ms, p99 {:.2} ms, slowest {:.2} ms\n",
                latency(0.5),
                latency(0.99),
                latency(1.0)
            ),
        });
        text.push_str(&format!(
            "refused for a quota {:.0}/s, refused otherwise {:.0}/s, failed {:.0}/s",
            second.rate(second.counts.all_throttled()),
            second.rate(second.counts.all_refused()),
            second.rate(second.counts.all_failed())
        ));
        self.say(&text);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The last rates as bars.
fn drawn(rates: &[f64]) -> String {
    let last = &rates[rates.len().saturating_sub(DRAWN)..];
    let most = last.iter().copied().fold(1.0, f64::max);
    let bar = |rate: &f64| BARS[((rate / most * 7.0).round() as usize).min(7)];
    last.iter().map(bar).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn rates_are_drawn_beside_the_highest() {
        assert_eq!(super::drawn(&[0.0, 50.0, 100.0]), "▁▅█");
        assert_eq!(super::drawn(&[1.0; 100]).chars().count(), super::DRAWN);
    }
}
