//! What Regions tell each other. The leader of each Region pulls the feed of every Region it is linked with
//! ([`pull`]), has the materials that it lacks sealed to its own HSM, and takes both over in one command. Nothing is
//! pushed, and nothing waits for another Region.
//!
//! A pull carries how far the puller has come: everything up to there is taken over *and fenced* in its Region. That is
//! how a primary knows that a new material may encrypt ([`Links::has_taken`]).
//!
//! **Invariant:** knows no wire format but its own messages, and holds no material in clear.

mod link;
mod messages;
mod pull;

pub use link::{Link, LinkStatus, Links};
pub use messages::{
    About, Page, PullRequest, RegionRequest, RegionResponse, SealedMaterial, decode, encode,
};
pub use pull::{Local, PAGE_KEYS_MAX, RegionTransport, answer_pull, pull};
