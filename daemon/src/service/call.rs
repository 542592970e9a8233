//! A call on its way to becoming a job: authorise, submit, export, reply.
//!
//! Owns that order, which all job-making methods share. Invariant: nothing here waits for the
//! job, or for anybody but polkit.

use osteward_dbus::Error;
use osteward_dbus::options::Common;
use zbus::message::Header;
use zbus::{Connection, OwnedObjectPath};

use super::auth::{self, Action, Details};
use super::publish::Publisher;
use super::{parse, translate};
use crate::engine::{Caller, Engine, Terms};
use crate::jobs::Request;

/// Who called, and on which terms.
pub(super) struct Call<'a> {
    pub(super) connection: &'a Connection,
    pub(super) header: Header<'a>,
    caller: Caller,
    terms: Terms,
}

impl<'a> Call<'a> {
    /// A call with the options that every job-making method takes.
    pub(super) fn new(
        connection: &'a Connection,
        header: Header<'a>,
        options: Common,
    ) -> Result<Self, Error> {
        let terms = parse::terms(&options)?;
        Ok(Self {
            connection,
            header,
            caller: parse::caller(options)?,
            terms,
        })
    }

    /// Makes the job if the caller may do all of `actions`. `image` and `digest` are what it
    /// is about, for polkit rules to look at; empty if nothing.
    pub(super) async fn start(
        self,
        (engine, publisher): (&Engine, &Publisher),
        request: Request,
        actions: &[Action],
        (image, digest): (&str, &str),
    ) -> Result<OwnedObjectPath, Error> {
        let _attendance = engine.attend();
        let details = Details {
            kind: request.kind(),
            image,
            digest,
            reason: &self.caller.reason,
        };
        let uid = auth::require(self.connection, &self.header, actions, &details).await?;
        let caller = Caller { uid, ..self.caller };
        // Root is asked for nothing.
        let is_alone = uid != 0
            && actions.contains(&Action::Apply)
            && !actions.contains(&Action::ApplyMultipleSessions);
        let terms = Terms {
            alone: is_alone.then_some(uid),
            ..self.terms
        };
        let job = engine.submit(request, caller, terms).await;
        let job = job.map_err(|error| error.to_bus())?;
        publisher.sync().await;
        Ok(translate::job_path(job))
    }
}
