//! `org.osteward1.Host`: the status and the operations of the booted system.
//!
//! Owns the translation of a call into a request: parse the options, authorise, submit,
//! export the job, reply. Invariants: no method waits for a job or for the sysroot; the
//! polkit action follows from the options alone.

use osteward_dbus::Error;
use osteward_dbus::options::{
    ApplyOptions, CancelRollbackOptions, CheckOptions, DiffEtcOptions, DiscardOptions,
    DownloadOptions, ImportArchiveOptions, NoOptions, RollbackOptions, SetKernelArgumentsOptions,
    SimulateOptions, UpgradeOptions, UsrOverlayOptions,
};
use osteward_dbus::types::{Dict, HostInfo};
use zbus::message::Header;
use zbus::{Connection, OwnedFd, OwnedObjectPath};

use super::auth::{self, Action};
use super::call::Call;
use super::publish::Publisher;
use super::{diff_etc, parse, translate};
use crate::engine::Engine;
use crate::image::reference::Digest;
use crate::jobs::{Archive, Pull, Request};
use crate::observe::logind::Logind;

/// The object.
#[derive(Debug)]
pub struct Host {
    engine: Engine,
    publisher: Publisher,
    logind: Logind,
}

impl Host {
    /// The object in front of that engine.
    pub fn new(engine: Engine, publisher: Publisher, logind: Logind) -> Self {
        Self {
            engine,
            publisher,
            logind,
        }
    }

    fn record(&self) -> HostInfo {
        translate::host(&self.engine.status())
    }

    /// Authorises a call and makes its job.
    async fn start(
        &self,
        call: Call<'_>,
        request: Request,
        actions: &[Action],
        digest: Option<Digest>,
    ) -> Result<OwnedObjectPath, Error> {
        let image = match &request {
            Request::Switch(origin, _) => origin.image.to_string(),
            Request::Import(
                Archive {
                    origin: Some(origin),
                    ..
                },
                _,
            ) => origin.image.to_string(),
            _ => self.tracked_image(),
        };
        let digest = digest.as_ref().map_or("", Digest::as_str);
        let makers = (&self.engine, &self.publisher);
        call.start(makers, request, actions, (&image, digest)).await
    }

    fn tracked_image(&self) -> String {
        let status = self.engine.status();
        let tracking = status.snapshot().and_then(|snapshot| snapshot.tracking());
        tracking.map_or_else(String::new, |tracking| tracking.origin_text.clone())
    }

    /// Adds what a reboot on behalf of the caller needs, if one is asked for. Not knowing
    /// who is logged in counts as somebody.
    async fn add_reboot(
        &self,
        actions: &mut Vec<Action>,
        call: &Call<'_>,
        reboot: bool,
    ) -> Result<(), Error> {
        if !reboot {
            return Ok(());
        }
        actions.push(Action::Apply);
        let uid = auth::uid(call.connection, &call.header).await?;
        if uid != 0 && self.logind.others_are_logged_in(uid).await.unwrap_or(true) {
            actions.push(Action::ApplyMultipleSessions);
        }
        Ok(())
    }

    /// What pulling an image of the tracked reference needs: another digest than the
    /// known candidate's may be an older one.
    fn pull_action(&self, pull: &Pull, usual: Action) -> Action {
        let offer = self.engine.status().offer();
        let known = offer.map(|offer| offer.image.digest.clone());
        if pull.allow_downgrade || (pull.digest.is_some() && pull.digest != known) {
            Action::Downgrade
        } else {
            usual
        }
    }
}

#[zbus::interface(name = "org.osteward1.Host", introspection_docs = false)]
impl Host {
    #[zbus(out_args("status"))]
    fn status(&self, options: NoOptions) -> Result<Dict, Error> {
        let NoOptions {} = options;
        Ok(translate::status(&self.engine.status()).to_dict()?)
    }

    #[zbus(out_args("job"))]
    async fn check(
        &self,
        options: CheckOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let request = Request::Check {
            max_age: options.max_age,
        };
        let call = Call::new(connection, header, options.common())?;
        self.start(call, request, &[Action::Check], None).await
    }

    #[zbus(out_args("job"))]
    async fn download(
        &self,
        options: DownloadOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let digest = parse::digest(options.digest.as_deref())?;
        let pull = Pull {
            digest: digest.clone(),
            allow_downgrade: options.allow_downgrade.unwrap_or(false),
            ..Pull::default()
        };
        let action = self.pull_action(&pull, Action::Download);
        let call = Call::new(connection, header, options.common())?;
        self.start(call, Request::Download(pull), &[action], digest)
            .await
    }

    #[zbus(out_args("job"))]
    async fn upgrade(
        &self,
        options: UpgradeOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let pull = parse::pull(&options)?;
        let digest = pull.digest.clone();
        let call = Call::new(connection, header, options.common())?;
        let usual = if pull.download_only {
            Action::Download
        } else {
            Action::UpgradeUnverified
        };
        let mut actions = vec![self.pull_action(&pull, usual)];
        self.add_reboot(&mut actions, &call, pull.apply.is_some())
            .await?;
        self.start(call, Request::Upgrade(pull), &actions, digest)
            .await
    }

    #[zbus(out_args("job"))]
    async fn switch(
        &self,
        image: &str,
        options: UpgradeOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let origin = parse::image(image)?;
        let pull = parse::pull(&options)?;
        let digest = pull.digest.clone();
        let call = Call::new(connection, header, options.common())?;
        let mut actions = vec![Action::Switch];
        self.add_reboot(&mut actions, &call, pull.apply.is_some())
            .await?;
        self.start(call, Request::Switch(origin, pull), &actions, digest)
            .await
    }

    #[zbus(out_args("job"))]
    async fn import_archive(
        &self,
        archive: OwnedFd,
        options: ImportArchiveOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let (archive, pull) = parse::archive(archive, &options)?;
        let digest = pull.digest.clone();
        let call = Call::new(connection, header, options.common())?;
        let mut actions = vec![Action::Switch];
        self.add_reboot(&mut actions, &call, pull.apply.is_some())
            .await?;
        self.start(call, Request::Import(archive, pull), &actions, digest)
            .await
    }

    #[zbus(out_args("job"))]
    async fn rollback(
        &self,
        options: RollbackOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let digest = parse::digest(options.digest.as_deref())?;
        let apply = parse::apply(options.apply.as_deref())?;
        let request = Request::Rollback {
            digest: digest.clone(),
            discard_staged: options.discard_staged.unwrap_or(false),
            quarantine: options.quarantine.unwrap_or(true),
            apply,
        };
        let call = Call::new(connection, header, options.common())?;
        let mut actions = vec![Action::Rollback];
        self.add_reboot(&mut actions, &call, apply.is_some())
            .await?;
        self.start(call, request, &actions, digest).await
    }

    #[zbus(out_args("job"))]
    async fn cancel_rollback(
        &self,
        options: CancelRollbackOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let call = Call::new(connection, header, options.common())?;
        self.start(call, Request::CancelRollback, &[Action::Rollback], None)
            .await
    }

    #[zbus(out_args("job"))]
    async fn apply(
        &self,
        options: ApplyOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let digest = parse::digest(options.digest.as_deref())?;
        let ignore_inhibitors = options.ignore_inhibitors.unwrap_or(false);
        let request = Request::Apply {
            digest: digest.clone(),
            mode: parse::mode(options.mode.as_deref())?,
            ignore_inhibitors,
        };
        let call = Call::new(connection, header, options.common())?;
        let mut actions = Vec::new();
        self.add_reboot(&mut actions, &call, true).await?;
        if ignore_inhibitors {
            actions.push(Action::IgnoreInhibit);
        }
        self.start(call, request, &actions, digest).await
    }

    #[zbus(out_args("job"))]
    async fn discard(
        &self,
        what: Vec<String>,
        options: DiscardOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let request = Request::Discard {
            what: parse::discardables(&what)?,
            dry_run: options.dry_run.unwrap_or(false),
        };
        let call = Call::new(connection, header, options.common())?;
        self.start(call, request, &[Action::Manage], None).await
    }

    #[zbus(out_args("job"))]
    async fn set_kernel_arguments(
        &self,
        append: Vec<String>,
        replace: Vec<String>,
        delete: Vec<String>,
        options: SetKernelArgumentsOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let change = parse::kernel_change(append, replace, delete, &options)?;
        let digest = change.digest.clone();
        let call = Call::new(connection, header, options.common())?;
        let request = Request::SetKernelArguments(change);
        self.start(call, request, &[Action::Kargs], digest).await
    }

    #[zbus(out_args("job"))]
    async fn simulate(
        &self,
        options: SimulateOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let digest = parse::digest(options.digest.as_deref())?;
        let call = Call::new(connection, header, options.common())?;
        let request = Request::Simulate(digest.clone());
        self.start(call, request, &[Action::Check], digest).await
    }

    #[zbus(out_args("job"))]
    async fn usr_overlay(
        &self,
        options: UsrOverlayOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedObjectPath, Error> {
        let request = Request::UsrOverlay {
            read_only: options.read_only.unwrap_or(false),
        };
        let call = Call::new(connection, header, options.common())?;
        self.start(call, request, &[Action::UsrOverlay], None).await
    }

    #[zbus(out_args("changes"))]
    async fn diff_etc(
        &self,
        options: DiffEtcOptions,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<Vec<(String, String)>, Error> {
        let uid = auth::uid(connection, &header).await?;
        diff_etc::changes(&self.engine.status(), &options, uid).await
    }

    #[zbus(property)]
    fn booted_deployment(&self) -> OwnedObjectPath {
        self.record().booted_deployment
    }

    #[zbus(property)]
    fn staged_deployment(&self) -> OwnedObjectPath {
        self.record().staged_deployment
    }

    #[zbus(property)]
    fn default_deployment(&self) -> OwnedObjectPath {
        self.record().default_deployment
    }

    #[zbus(property)]
    fn rollback_deployment(&self) -> OwnedObjectPath {
        self.record().rollback_deployment
    }

    #[zbus(property)]
    fn rollback_queued(&self) -> bool {
        self.record().rollback_queued
    }

    #[zbus(property)]
    fn deployments(&self) -> Vec<OwnedObjectPath> {
        self.record().deployments
    }

    #[zbus(property)]
    fn stateroot(&self) -> String {
        self.record().stateroot
    }

    #[zbus(property)]
    fn os_name(&self) -> String {
        self.record().os_name
    }

    #[zbus(property)]
    fn os_version(&self) -> String {
        self.record().os_version
    }

    #[zbus(property)]
    fn boot_digest(&self) -> String {
        self.record().boot_digest
    }

    #[zbus(property)]
    fn tracking(&self) -> Dict {
        self.record().tracking
    }

    #[zbus(property)]
    fn update_state(&self) -> String {
        self.record().update_state
    }

    #[zbus(property)]
    fn update(&self) -> OwnedObjectPath {
        self.record().update
    }

    #[zbus(property)]
    fn last_check(&self) -> Dict {
        self.record().last_check
    }

    #[zbus(property)]
    fn last_finalize(&self) -> Dict {
        self.record().last_finalize
    }

    #[zbus(property)]
    fn reboot_required(&self) -> String {
        self.record().reboot_required
    }

    #[zbus(property)]
    fn kernel_arguments(&self) -> Vec<String> {
        self.record().kernel_arguments
    }
}
