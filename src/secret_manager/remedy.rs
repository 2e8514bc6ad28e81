//! What to do about a secret that cannot be read, as commands that can be pasted.

use super::answer::Reason;
use crate::config::SecretVersion;

/// Who asks.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(super) name: String,
    pub(super) zone: String,
    pub(super) project: String,
    /// The address of its service account.
    pub(crate) account: String,
    /// Its tokens cannot be used for most of Google's APIs.
    pub(crate) lacks_scope: bool,
}

impl Vm {
    /// A VM without any account gets one.
    pub(crate) fn give_account(&self) -> String {
        format!("Stop the VM, give it an account and the scope, and start it: {}.", self.set_account())
    }

    #[cfg(test)]
    pub(crate) fn new(account: &str, lacks_scope: bool) -> Self {
        let [name, zone, project] = ["claw-1", "europe-west1-b", "vms"].map(str::to_owned);
        Self { name, zone, project, account: account.to_owned(), lacks_scope }
    }

    /// One without the scope gets it.
    pub(crate) fn give_scope(&self) -> String {
        format!("The VM lacks the scope cloud-platform: {}.", self.set_account())
    }

    /// Both can be changed only while it does not run.
    fn set_account(&self) -> String {
        let Self { name, zone, project, account, .. } = self;
        let vm = format!("{name} --zone={zone} --project={project}");
        format!(
            "`gcloud compute instances stop {vm} && gcloud compute instances set-service-account {vm} \
             --service-account={account} --scopes=cloud-platform && gcloud compute instances start {vm}`"
        )
    }
}

/// A sentence or two, with a command.
pub(super) fn remedy(reason: &Reason, secret: &SecretVersion, vm: &Vm) -> String {
    let (name, at) = (&secret.secret, place(secret));
    match reason {
        Reason::Permission => format!(
            "If the secret exists, let the VM's account read it: `gcloud secrets add-iam-policy-binding {name} {at} \
             --member=serviceAccount:{} --role=roles/secretmanager.secretAccessor`. That takes a minute or two to take effect.",
            vm.account
        ),
        Reason::NoAccount => vm.give_account(),
        Reason::Scope => vm.give_scope(),
        Reason::ApiDisabled(project) => enable_api("secretmanager", project.as_ref(), vm),
        Reason::NoSecret => {
            let replication = if secret.location.is_some() { "" } else { " --replication-policy=automatic" };
            format!(
                "Correct the attribute, or create the secret: `gcloud secrets create {name} {at}{replication} \
                 --data-file=FILE`; if it exists without a version: {}.",
                add_version(secret)
            )
        }
        Reason::NoVersion => {
            format!(
                "Name another version (`gcloud secrets versions list {name} {at}`), or add one: {}.",
                add_version(secret)
            )
        }
        Reason::Disabled(version) => {
            let version = version.as_ref().unwrap_or(&secret.version);
            format!(
                "Enable it: `gcloud secrets versions enable {version} --secret={name} {at}`, or name another version."
            )
        }
        Reason::Destroyed => {
            format!("Its value is gone. Add a version, and name that one or latest: {}.", add_version(secret))
        }
        Reason::NotText => format!("Add a version that is text: {}.", add_version(secret)),
        Reason::Other => format!("Look at what is said of the secret: `gcloud secrets describe {name} {at}`."),
    }
}

/// What to do about an API that is not enabled in the project, the VM's own if none is said.
pub(crate) fn enable_api(api: &str, project: Option<&String>, vm: &Vm) -> String {
    format!(
        "Enable the API: `gcloud services enable {api}.googleapis.com --project={}`. That takes a minute or two to take \
         effect.",
        project.unwrap_or(&vm.project)
    )
}

/// The command that gives the secret another value.
pub(crate) fn add_version(secret: &SecretVersion) -> String {
    format!("`gcloud secrets versions add {} {} --data-file=FILE`", secret.secret, place(secret))
}

fn place(secret: &SecretVersion) -> String {
    let location = secret.location.as_ref().map(|location| format!(" --location={location}"));
    format!("--project={}{}", secret.project, location.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_the_command_that_mends_it() {
        let vm = Vm::new("claw@vms.iam.gserviceaccount.com", false);
        let grant = "`gcloud secrets add-iam-policy-binding s --project=p --location=l \
                     --member=serviceAccount:claw@vms.iam.gserviceaccount.com --role=roles/secretmanager.secretAccessor`";
        let scopes = "gcloud compute instances set-service-account claw-1 --zone=europe-west1-b --project=vms \
                      --service-account=claw@vms.iam.gserviceaccount.com --scopes=cloud-platform && ";
        let regional = "projects/p/locations/l/secrets/s/versions/3";
        #[rustfmt::skip]
        let cases = [
            (Reason::Permission, regional, grant),
            (Reason::Scope, regional, scopes),
            (Reason::ApiDisabled(Some("7".to_owned())), regional, "`gcloud services enable secretmanager.googleapis.com --project=7`"),
            (Reason::ApiDisabled(None), regional, "secretmanager.googleapis.com --project=vms`"),
            (Reason::NoSecret, regional, "`gcloud secrets create s --project=p --location=l --data-file=FILE`"),
            (Reason::NoSecret, "projects/p/secrets/s", "`gcloud secrets create s --project=p --replication-policy=automatic --data-file=FILE`"),
            (Reason::NoVersion, regional, "`gcloud secrets versions list s --project=p --location=l`"),
            (Reason::Disabled(None), regional, "`gcloud secrets versions enable 3 --secret=s --project=p --location=l`"),
            (Reason::Disabled(Some("8".to_owned())), "projects/p/secrets/s", "`gcloud secrets versions enable 8 --secret=s --project=p`"),
            (Reason::Destroyed, regional, "`gcloud secrets versions add s --project=p --location=l --data-file=FILE`"),
            (Reason::NotText, regional, "`gcloud secrets versions add s --project=p --location=l --data-file=FILE`"),
            (Reason::Other, regional, "`gcloud secrets describe s --project=p --location=l`"),
        ];
        for (reason, secret, command) in cases {
            let Ok(secret) = secret.parse() else { panic!("{secret} is a name") };
            let remedy = remedy(&reason, &secret, &vm);
            assert!(remedy.contains(command), "{reason:?}: {remedy}");
        }
        assert!(
            vm.give_account().contains("gcloud compute instances stop claw-1 --zone=europe-west1-b --project=vms && ")
        );
    }
}
