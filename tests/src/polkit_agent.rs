//! An authentication agent without a screen: who would show polkit's dialog, played by the harness.
//!
//! Invariant: it answers for callers of this process only, and leaves polkitd with the connection.

use std::collections::HashMap;

use anyhow::{Context, Result};
use tokio::sync::mpsc;
use zbus::{Connection, OwnedVariant, Variant};

use crate::bus::{Bus, POLKIT};

/// Where polkitd finds the agent.
const PATH: &str = "/agent";

/// What an agent hears.
#[derive(Debug)]
pub enum Asked {
    /// Somebody is to prove who they are.
    Begin {
        /// The action that needs it.
        action: String,
        /// Polkit's name for the question.
        cookie: String,
        /// The first of those who may answer: its kind and details.
        identity: (String, HashMap<String, OwnedVariant>),
    },
    /// The question is no longer open.
    Cancel {
        /// Which.
        cookie: String,
    },
}

/// A registered agent.
#[derive(Debug)]
pub struct Agent {
    #[expect(dead_code, reason = "held for its end")]
    connection: Connection,
    hears: mpsc::Receiver<Asked>,
}

impl Agent {
    /// Registers an agent that says yes in polkit's name, or nothing at all.
    ///
    /// # Errors
    /// When polkitd does not run, or does not want it.
    pub async fn register(bus: &Bus, says_yes: bool) -> Result<Self> {
        let connection = bus.connect().await?;
        let (heard, hears) = mpsc::channel(10);
        let dialog = Dialog { heard, says_yes };
        connection.object_server().at(PATH, dialog).await?;
        let mut details = HashMap::new();
        details.insert("pid", Variant::from(std::process::id()));
        details.insert("start-time", Variant::from(0_u64));
        details.insert("uid", Variant::from(0_i32));
        let body = (("unix-process", details), "C", PATH);
        authority(&connection, "RegisterAuthenticationAgent", &body).await?;
        Ok(Self { connection, hears })
    }

    /// Waits for what it hears next.
    ///
    /// # Errors
    /// When the bus is gone.
    pub async fn hears(&mut self) -> Result<Asked> {
        self.hears.recv().await.context("the agent ended")
    }
}

struct Dialog {
    heard: mpsc::Sender<Asked>,
    says_yes: bool,
}

#[zbus::interface(name = "org.freedesktop.PolicyKit1.AuthenticationAgent")]
impl Dialog {
    #[expect(clippy::too_many_arguments, reason = "the interface has them")]
    async fn begin_authentication(
        &self,
        action: String,
        _message: String,
        _icon: String,
        _details: HashMap<String, String>,
        cookie: String,
        identities: Vec<(String, HashMap<String, OwnedVariant>)>,
        #[zbus(connection)] connection: &Connection,
    ) -> zbus::fdo::Result<()> {
        let failed = |error: String| zbus::fdo::Error::Failed(error);
        let identity = identities.into_iter().next();
        let identity = identity.ok_or_else(|| failed("no identity".into()))?;
        if self.says_yes {
            let answer = (0_u32, &cookie, &identity);
            authority(connection, "AuthenticationAgentResponse2", &answer)
                .await
                .map_err(|error| failed(error.to_string()))?;
        }
        let asked = Asked::Begin {
            action,
            cookie,
            identity,
        };
        self.heard
            .send(asked)
            .await
            .map_err(|error| failed(error.to_string()))?;
        if !self.says_yes {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    async fn cancel_authentication(&self, cookie: String) {
        // The test being over is no concern of polkit's.
        let _heard = self.heard.send(Asked::Cancel { cookie }).await;
    }
}

async fn authority<B>(connection: &Connection, method: &str, body: &B) -> zbus::Result<()>
where
    B: serde::Serialize + zbus::Type + Sync,
{
    let path = "/org/freedesktop/PolicyKit1/Authority";
    let interface = Some("org.freedesktop.PolicyKit1.Authority");
    connection
        .call_method(Some(POLKIT), path, interface, method, body)
        .await
        .map(drop)
}
