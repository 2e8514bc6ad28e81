//! A small signed apt repository that stands for Docker's own.
//!
//! Layout, package names, relations between packages and the shape of the signing key (RSA, a primary key and a
//! signing subkey) are Docker's; the programs are Debian's builds of the same software, so the versions say what
//! they are. The key is the lab's own: its fingerprint is [`DockerApt::fingerprint`].

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cloud::signing::Keys;
use crate::program::run;
use crate::sources::{Sources, Suite};

/// Part of the cache key: to be raised when the steps below change and the tables do not.
const RECIPE: &str = "1";
/// The path below which Docker keeps its repository for Debian.
const BASE: &str = "linux/debian";

/// Which answer the repository gives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DockerRepository {
    /// Consistent: the expected key, and indices signed with it.
    #[default]
    Good,
    /// Consistent as well, but key and signatures are somebody else's: only the fingerprint tells.
    WrongKey,
    /// The key file holds the expected key and a second one; the indices are signed with the expected one.
    TwoKeys,
    /// Nothing listens at its address.
    Unreachable,
}

impl DockerRepository {
    /// The trees that make up its answer; the first that has a path wins.
    fn trees(self) -> &'static [&'static str] {
        match self {
            Self::Good => &["good", "common"],
            Self::WrongKey => &["other", "common"],
            Self::TwoKeys => &["both", "good", "common"],
            Self::Unreachable => &[],
        }
    }
}

/// A package under Docker's name, made of Debian's.
struct Package {
    name: &'static str,
    /// Debian's packages that it is made of; the first gives the maintainer scripts and most fields.
    made_of: &'static [&'static str],
    /// Whether the first comes from the newest suite for all of them: it runs on the older one too.
    newest: bool,
    /// What Docker puts before the version.
    epoch: &'static str,
    /// What Debian's dependencies leave out or call otherwise.
    not_needed: &'static [&'static str],
    depends: &'static [&'static str],
    /// Docker's own fields that matter on a machine with Debian's packages.
    fields: &'static [(&'static str, &'static str)],
}

const PACKAGES: [Package; 5] = [
    Package {
        name: "docker-ce",
        made_of: &["docker.io"],
        newest: true,
        epoch: "5:",
        not_needed: &["containerd", "runc"],
        depends: &["containerd.io (>= 1.6.4)", "docker-ce-cli"],
        fields: &[
            ("Recommends", "apparmor, ca-certificates, git, pigz, procps, xz-utils"),
            ("Conflicts", "docker (<< 1.5~), docker-engine, docker.io, lxc-docker"),
            ("Replaces", "docker-engine"),
        ],
    },
    Package {
        name: "docker-ce-cli",
        made_of: &["docker-cli"],
        newest: true,
        epoch: "5:",
        not_needed: &[],
        depends: &[],
        fields: &[
            ("Recommends", "docker-buildx-plugin, docker-compose-plugin"),
            ("Conflicts", "docker (<< 1.5~), docker-cli, docker-engine, docker.io, lxc-docker"),
            ("Replaces", "docker-ce (<< 5:0)"),
        ],
    },
    Package {
        name: "containerd.io",
        made_of: &["containerd", "runc"],
        newest: false,
        epoch: "",
        not_needed: &["runc"],
        depends: &["libseccomp2 (>= 2.5.0)"],
        fields: &[
            ("Provides", "containerd, runc"),
            ("Conflicts", "containerd, runc"),
            ("Replaces", "containerd, runc"),
        ],
    },
    Package {
        name: "docker-buildx-plugin",
        made_of: &["docker-buildx"],
        newest: true,
        epoch: "",
        not_needed: &[],
        depends: &[],
        fields: &[("Enhances", "docker-ce-cli"), ("Conflicts", "docker-buildx")],
    },
    Package {
        name: "docker-compose-plugin",
        made_of: &["docker-compose"],
        newest: true,
        epoch: "",
        not_needed: &[],
        depends: &[],
        fields: &[("Enhances", "docker-ce-cli"), ("Conflicts", "docker-compose")],
    },
];

/// The repository, made and signed.
#[derive(Debug)]
pub struct DockerApt {
    directory: PathBuf,
    fingerprint: String,
}

impl DockerApt {
    /// The repository of this cache, made when there is none. Takes about two minutes then.
    ///
    /// Needs `apt`, `apt-ftparchive`, `dpkg-deb` and `gpg`.
    pub fn prepare(cache: &Cache, sources: &Sources) -> Result<Self> {
        let keys = Keys::load(cache)?;
        let fingerprint = keys.fingerprint(Keys::GOOD)?;
        let texts: Vec<String> = PACKAGES.iter().map(Package::recipe).collect();
        let mut recipe = vec![RECIPE, &fingerprint];
        recipe.extend(texts.iter().map(String::as_str));
        let archives = Suite::ALL.map(|suite| sources.recipe(suite));
        recipe.extend(archives.iter().map(String::as_str));
        let directory = cache.entry("docker-apt", &recipe, |directory| build(directory, sources, &keys))?;
        Ok(Self { directory, fingerprint })
    }

    /// The fingerprint of the expected key: 40 upper-case hex digits, as `gpg` prints it without spaces.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The file that `repository` serves for the decoded path of a URL; none for what it does not have.
    pub fn file(&self, repository: DockerRepository, path: &str) -> Option<PathBuf> {
        let path = Path::new(path.trim_start_matches('/'));
        let inside = path.components().all(|it| matches!(it, Component::Normal(_)));
        let mut files = repository.trees().iter().map(|tree| self.directory.join(tree).join(path));
        files.find(|file| inside && file.is_file())
    }
}

impl Package {
    fn recipe(&self) -> String {
        format!("{} {:?} {:?} {:?} {:?}", self.name, self.made_of, self.not_needed, self.depends, self.fields)
    }

    /// Makes the package for `suite` in `pool` from the Debian packages in `downloads`.
    fn repack(&self, suite: Suite, downloads: &Downloads, pool: &Path) -> Result<()> {
        let tree = tempfile::tempdir_in(&downloads.directory).context("creating a directory to repack in")?;
        let from = if self.newest { Suite::Trixie } else { suite };
        for part in self.made_of.iter().skip(1) {
            run(Command::new("dpkg-deb").arg("--extract").arg(downloads.package(from, part)?).arg(tree.path()))?;
        }
        let first = self.made_of.first().context("a package made of nothing")?;
        run(Command::new("dpkg-deb").arg("--raw-extract").arg(downloads.package(from, first)?).arg(tree.path()))?;
        // With this, Debian's engine deletes all images and containers when it is purged; Docker's never does.
        let contrib = tree.path().join("usr/share/docker.io/contrib");
        if contrib.exists() {
            fs::remove_dir_all(&contrib).with_context(|| format!("removing {}", contrib.display()))?;
        }
        let file = tree.path().join("DEBIAN/control");
        let control = fs::read_to_string(&file).with_context(|| format!("reading the control file of {first}"))?;
        let (control, version) = self.control(&control, suite).with_context(|| format!("rewriting {first}"))?;
        fs::write(&file, control).with_context(|| format!("writing the control file of {}", self.name))?;
        let version = version.split_once(':').map_or(version.as_str(), |(_, version)| version);
        let package = pool.join(format!("{}_{version}_amd64.deb", self.name));
        let mut build = Command::new("dpkg-deb");
        build.args(["--build", "--root-owner-group", "-Zgzip", "-z1"]).arg(tree.path()).arg(package);
        run(&mut build).map(drop)
    }

    /// The control file under Docker's name, made from Debian's; and the version in it.
    fn control(&self, debian: &str, suite: Suite) -> Result<(String, String)> {
        const KEPT: [&str; 8] = [
            "Architecture",
            "Maintainer",
            "Installed-Size",
            "Pre-Depends",
            "Section",
            "Priority",
            "Homepage",
            "Description",
        ];
        let fields = fields(debian);
        let field = |name: &str| fields.iter().find(|(it, _)| *it == name).map(|(_, value)| value.as_str());
        let version = upstream_version(field("Version").context("it has no version")?);
        let version = format!("{}{version}-1~debian.{}~{}", self.epoch, suite.number(), suite.codename());
        let debians = field("Depends").unwrap_or_default().split(',').map(str::trim);
        let needed = debians.filter(|it| !self.not_needed.contains(&it.split(' ').next().unwrap_or_default()));
        let depends: Vec<&str> = self.depends.iter().copied().chain(needed.filter(|it| !it.is_empty())).collect();
        let mut control = format!("Package: {}\nVersion: {version}\nDepends: {}\n", self.name, depends.join(", "));
        let kept = KEPT.iter().filter_map(|name| Some((*name, field(name)?)));
        for (name, value) in self.fields.iter().copied().chain(kept) {
            control.extend([name, ": ", value, "\n"]);
        }
        Ok((control, version))
    }
}

/// The fields of a control file, continuation lines included.
fn fields(control: &str) -> Vec<(&str, String)> {
    let mut fields: Vec<(&str, String)> = Vec::new();
    for line in control.lines() {
        match (line.starts_with(' '), fields.last_mut(), line.split_once(':')) {
            (true, Some((_, value)), _) => value.extend(["\n", line]),
            (false, _, Some((name, value))) => fields.push((name, value.trim().to_owned())),
            _ => {}
        }
    }
    fields
}

/// `26.1.5` of `26.1.5+dfsg1-9+deb13u1`: what the program itself says.
fn upstream_version(debian: &str) -> &str {
    let version = debian.split_once(':').map_or(debian, |(_, version)| version);
    version.split(['+', '~', '-']).next().unwrap_or(version)
}

/// Debian's packages, as this machine's archives have them.
struct Downloads {
    directory: PathBuf,
}

impl Downloads {
    fn fetch(directory: &Path, sources: &Sources) -> Result<Self> {
        for suite in Suite::ALL {
            let wanted = PACKAGES.iter().filter(|it| !it.newest || suite == Suite::Trixie);
            let names: Vec<&str> = wanted.flat_map(|it| it.made_of).copied().collect();
            let root = directory.join(suite.codename());
            for part in ["etc/apt/apt.conf.d", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial"] {
                fs::create_dir_all(root.join(part)).with_context(|| format!("creating {part} for apt"))?;
            }
            fs::write(root.join("etc/apt/sources.list"), sources.list(suite)).context("writing apt's sources")?;
            File::create(root.join("status")).context("creating apt's status file")?;
            let settings = format!(
                "Dir \"{0}\";\nDir::State::status \"{0}/status\";\nAPT::Sandbox::User \"root\";\n{1}",
                root.display(),
                sources.settings()
            );
            let configuration = root.join("apt.conf");
            fs::write(&configuration, settings).context("writing apt's configuration")?;
            let apt = || {
                let mut apt = Command::new("apt-get");
                apt.env("APT_CONFIG", &configuration).current_dir(&root).arg("--quiet=2");
                apt
            };
            run(apt().arg("update"))?;
            run(apt().arg("download").args(names))?;
        }
        Ok(Self { directory: directory.to_owned() })
    }

    fn package(&self, suite: Suite, name: &str) -> Result<PathBuf> {
        let directory = self.directory.join(suite.codename());
        let listing = fs::read_dir(&directory).with_context(|| format!("listing {}", directory.display()))?;
        let prefix = format!("{name}_");
        let mut files = listing.filter_map(|entry| Some(entry.ok()?.path()));
        files
            .find(|file| file.file_name().is_some_and(|it| it.to_string_lossy().starts_with(&prefix)))
            .with_context(|| format!("{name} of {} was not downloaded", suite.codename()))
    }
}

fn build(directory: &Path, sources: &Sources, keys: &Keys) -> Result<()> {
    let downloads = directory.join("downloads");
    let packages = Downloads::fetch(&downloads, sources)?;
    for suite in Suite::ALL {
        let common = directory.join("common").join(BASE);
        let release = index(&common, suite, &packages).with_context(|| format!("indexing {}", suite.codename()))?;
        for (tree, key) in [("good", Keys::GOOD), ("other", Keys::OTHER)] {
            let dists = directory.join(tree).join(BASE).join("dists").join(suite.codename());
            fs::create_dir_all(&dists).with_context(|| format!("creating {}", dists.display()))?;
            keys.sign(key, &release, &dists)?;
        }
    }
    for (tree, names) in [("good", &[Keys::GOOD][..]), ("other", &[Keys::OTHER]), ("both", &[Keys::GOOD, Keys::OTHER])]
    {
        let base = directory.join(tree).join(BASE);
        fs::create_dir_all(&base).with_context(|| format!("creating {}", base.display()))?;
        fs::write(base.join("gpg"), keys.armored(names)?).with_context(|| format!("writing the key of {tree}"))?;
    }
    fs::remove_dir_all(&downloads).with_context(|| format!("removing {}", downloads.display()))
}

/// Fills pool and indices of one suite below `base`; returns the text of its `Release` file.
fn index(base: &Path, suite: Suite, packages: &Downloads) -> Result<String> {
    let codename = suite.codename();
    let pool = format!("dists/{codename}/pool/stable/amd64");
    let binary = base.join(format!("dists/{codename}/stable/binary-amd64"));
    for path in [&base.join(&pool), &binary] {
        fs::create_dir_all(path).with_context(|| format!("creating {}", path.display()))?;
    }
    for package in &PACKAGES {
        package.repack(suite, packages, &base.join(&pool)).with_context(|| format!("making {}", package.name))?;
    }
    let list = run(Command::new("apt-ftparchive").current_dir(base).args(["packages", &pool]))?;
    fs::write(binary.join("Packages"), list).context("writing Packages")?;
    run(Command::new("gzip").args(["-9", "--no-name", "--keep"]).arg(binary.join("Packages")))?;
    let mut release = Command::new("apt-ftparchive");
    for (name, value) in [
        ("Origin", "Docker"),
        ("Label", "Docker CE"),
        ("Suite", codename),
        ("Codename", codename),
        ("Architectures", "amd64"),
        ("Components", "stable"),
    ] {
        release.arg("-o").arg(format!("APT::FTPArchive::Release::{name}={value}"));
    }
    run(release.current_dir(base).args(["release", &format!("dists/{codename}")]))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_version_is_what_the_program_itself_says() {
        for (debian, upstream) in [
            ("26.1.5+dfsg1-9+deb13u1+b1", "26.1.5"),
            ("1.7.24~ds1-6", "1.7.24"),
            ("2:0.13.1-3", "0.13.1"),
            ("1.0", "1.0"),
        ] {
            assert_eq!(upstream_version(debian), upstream, "{debian}");
        }
    }

    #[test]
    fn a_package_keeps_its_dependencies_and_takes_dockers_names_and_relations() {
        let debian = "Package: docker.io\nSource: docker.io\nVersion: 26.1.5+dfsg1-9\nArchitecture: amd64\n\
                      Depends: libc6 (>= 2.34), containerd (>= 1.4~), iptables, runc (>= 1.0.0~rc8~), tini\n\
                      Conflicts: docker-ce\nDescription: Linux container runtime\n Long.\n .\n Text.\n";
        let (control, version) = PACKAGES[0].control(debian, Suite::Bookworm).unwrap();
        assert_eq!(version, "5:26.1.5-1~debian.12~bookworm");
        let fields = fields(&control);
        let field = |name: &str| fields.iter().find(|(it, _)| *it == name).map(|(_, value)| value.as_str());
        assert_eq!(field("Package"), Some("docker-ce"));
        let depends = "containerd.io (>= 1.6.4), docker-ce-cli, libc6 (>= 2.34), iptables, tini";
        assert_eq!(field("Depends"), Some(depends));
        assert!(field("Conflicts").unwrap().contains("docker.io"), "{control}");
        assert_eq!(field("Source"), None);
        assert_eq!(field("Description"), Some("Linux container runtime\n Long.\n .\n Text."));
    }

    #[test]
    fn the_trees_are_laid_over_each_other_and_nothing_else_is_served() {
        let directory = tempfile::tempdir().unwrap();
        for file in ["good/gpg", "good/InRelease", "other/gpg", "both/gpg", "common/deb", "secret"] {
            let file = directory.path().join(file);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let apt = DockerApt { directory: directory.path().to_owned(), fingerprint: String::new() };
        for (repository, path, served) in [
            (DockerRepository::Good, "/gpg", Some("good/gpg")),
            (DockerRepository::Good, "/deb", Some("common/deb")),
            (DockerRepository::WrongKey, "/gpg", Some("other/gpg")),
            (DockerRepository::TwoKeys, "/gpg", Some("both/gpg")),
            (DockerRepository::TwoKeys, "/InRelease", Some("good/InRelease")),
            (DockerRepository::Unreachable, "/gpg", None),
            (DockerRepository::Good, "/../secret", None),
            (DockerRepository::Good, "//etc/passwd", None),
            (DockerRepository::Good, "/", None),
        ] {
            let file = apt.file(repository, path);
            assert_eq!(file, served.map(|it| directory.path().join(it)), "{repository:?} {path}");
        }
    }
}
