package kernel

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// EnvMirror names the environment variable with the URL of a Debian mirror,
// for hosts whose package manager has no Debian archive configured.
const EnvMirror = "HVPOST_DEBIAN_MIRROR"

// Suites to look in on such hosts. One that the mirror or the keyring no
// longer serves is passed over.
var debianSuites = []string{"bookworm", "bookworm-updates", "bookworm-backports", "trixie", "trixie-updates", "trixie-backports"}

// Where the package debian-archive-keyring puts the keys.
var debianKeyrings = []string{
	"/usr/share/keyrings/debian-archive-keyring.pgp",
	"/usr/share/keyrings/debian-archive-keyring.gpg",
}

// maxAptOutput bounds what is kept of a command's output; a search for all
// kernels gives about 20 KB.
const maxAptOutput = 4 << 20

// fetch downloads and imports the newest kernel that d names. It tries the
// host's package lists as they are (no network, but they may be missing or
// stale), then fresh private lists of the host's sources, then Debian's own
// archive.
func (c *cache) fetch(ctx context.Context, d debianSpec, o Options) (*Kernel, error) {
	fail := func(err error) error {
		return fmt.Errorf("kernel %s: %w: or download a linux-image-*-%s .deb elsewhere and pass -k FILE.deb", d, err, d.flavour)
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return nil, fail(errors.New("no apt-get on this host"))
	}
	root, err := c.writable()
	if err != nil {
		return nil, err
	}
	tmp, err := tempDir(root)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	var firstErr error
	for _, source := range []func(context.Context, string, io.Writer) (*apt, error){hostLists, freshLists, debianLists} {
		var e *entry
		a, err := source(ctx, tmp, o.Progress)
		if err == nil {
			e, err = c.fetchWith(ctx, a, d, tmp, o)
		}
		if err == nil {
			return c.fromEntry(e, o)
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("kernel %s: %w", d, ctx.Err())
		}
		// What went wrong with the archive that is configured says more than
		// that another one is not; but "no such kernel" says least of all.
		if firstErr == nil || errors.Is(firstErr, errNoSuchPackage) {
			firstErr = err
		}
	}
	return nil, fail(firstErr)
}

// fetchWith gets the newest kernel that one set of package lists knows.
func (c *cache) fetchWith(ctx context.Context, a *apt, d debianSpec, tmp string, o Options) (*entry, error) {
	packages, err := a.search(ctx, d)
	if err != nil {
		return nil, err
	}
	name := d.newest(packages)
	if name == "" {
		return nil, fmt.Errorf("%w: linux-image-%s*-%s", errNoSuchPackage, d.series, d.flavour)
	}
	whole, err := a.show(ctx, name)
	if err != nil {
		return nil, err
	}
	abi, _ := d.abi(name)
	all, err := c.all()
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if have, ok := d.abi(e.meta.Package); ok && have == abi && e.meta.Version == whole[0].version {
			return e, nil
		}
	}
	packages = d.parts(name, whole[0].depends)
	parts, err := a.show(ctx, packages...)
	if err != nil {
		return nil, err
	}
	var size int64
	for _, p := range parts {
		size += p.size
	}
	if o.Progress != nil {
		fmt.Fprintf(o.Progress, "fetching %s %s (%.1f MB)\n", name, whole[0].version, float64(size)/1e6)
	}
	files, err := a.download(ctx, packages, tmp)
	if err != nil {
		return nil, err
	}
	return c.importDebs(ctx, files, o.Progress)
}

var errNoSuchPackage = errors.New("no such kernel in the package lists")

// An apt runs the host's apt tools, with a configuration of ours if conf is
// set.
type apt struct {
	conf string // path for APT_CONFIG
}

// hostLists uses the package lists that the host has.
func hostLists(context.Context, string, io.Writer) (*apt, error) { return &apt{}, nil }

// freshLists downloads the lists of the host's sources to a private place: no
// root needed, and the host's own state stays as it is.
func freshLists(ctx context.Context, tmp string, progress io.Writer) (*apt, error) {
	return privateLists(ctx, filepath.Join(tmp, "apt-host"), "", progress)
}

// debianLists downloads the lists of Debian's own archive, for hosts of other
// distributions that have Debian's keys.
func debianLists(ctx context.Context, tmp string, progress io.Writer) (*apt, error) {
	keyring := ""
	for _, k := range debianKeyrings {
		if _, err := os.Stat(k); err == nil {
			keyring = k
			break
		}
	}
	if keyring == "" {
		return nil, errors.New("no Debian archive configured here and no debian-archive-keyring to check one with: install that package")
	}
	mirror := os.Getenv(EnvMirror)
	if mirror == "" {
		return nil, fmt.Errorf("%w; %s may name a Debian mirror with more", errNoSuchPackage, EnvMirror)
	}
	if u, err := url.Parse(mirror); err != nil || u.Scheme == "" || strings.ContainsAny(mirror, " \n\t[]") {
		return nil, fmt.Errorf("%s: %q is not a URL", EnvMirror, mirror)
	}
	var b strings.Builder
	for _, suite := range debianSuites {
		fmt.Fprintf(&b, "deb [arch=amd64 signed-by=%s] %s %s main\n", keyring, mirror, suite)
	}
	return privateLists(ctx, filepath.Join(tmp, "apt-debian"), b.String(), progress)
}

// privateLists makes an apt state of its own in dir, with the given sources
// or, if empty, the host's, and downloads the package lists.
func privateLists(ctx context.Context, dir, sources string, progress io.Writer) (*apt, error) {
	for _, d := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	// The host's settings (proxies, certificates) count; its hooks, which act
	// on the host's own caches, do not.
	host, err := (&apt{}).run(ctx, "", "apt-config", "dump")
	if err != nil {
		return nil, err
	}
	var conf bytes.Buffer
	for _, line := range bytes.SplitAfter(host, []byte("\n")) {
		if !hookRE.Match(line) {
			conf.Write(line)
		}
	}
	quoted := func(key, value string) { fmt.Fprintf(&conf, "%s %s;\n", key, strconv.Quote(value)) }
	quoted("Dir::Etc::parts", "/dev/null") // all of it is above
	quoted("Dir::Etc::main", "/dev/null")
	quoted("Dir::State", filepath.Join(dir, "state"))
	quoted("Dir::State::lists", "lists/")
	quoted("Dir::State::status", filepath.Join(dir, "status"))
	quoted("Dir::Cache", filepath.Join(dir, "cache"))
	quoted("Dir::Cache::archives", "archives/")
	quoted("APT::Architecture", "amd64")
	quoted("Acquire::Languages", "none")
	if os.Getuid() == 0 {
		// The unprivileged download user cannot enter the cache directory.
		quoted("APT::Sandbox::User", "root")
	}
	if sources != "" {
		list := filepath.Join(dir, "sources.list")
		if err := os.WriteFile(list, []byte(sources), 0o644); err != nil {
			return nil, err
		}
		quoted("Dir::Etc::sourcelist", list)
		quoted("Dir::Etc::sourceparts", "/dev/null")
	}
	if err := os.WriteFile(filepath.Join(dir, "status"), nil, 0o644); err != nil {
		return nil, err
	}
	a := &apt{conf: filepath.Join(dir, "apt.conf")}
	if err := os.WriteFile(a.conf, conf.Bytes(), 0o644); err != nil {
		return nil, err
	}
	if progress != nil {
		fmt.Fprintln(progress, "fetching package lists")
	}
	// One source of many may fail and the others do; then the search still
	// finds something. If all fail this error is the one to show.
	_, err = a.run(ctx, dir, "apt-get", "-q", "-o", "APT::Update::Error-Mode=any", "update")
	if err != nil {
		if found, e := filepath.Glob(filepath.Join(globQuote(dir), "state/lists/*_Packages*")); e != nil || len(found) == 0 {
			return nil, err
		}
	}
	return a, nil
}

var hookRE = regexp.MustCompile(`(?i)^(APT::Update::(Pre|Post)-|DPkg::(Pre|Post)-|APT::Architectures)`)

// search lists the packages that could match d.
func (a *apt) search(ctx context.Context, d debianSpec) ([]string, error) {
	out, err := a.run(ctx, "", "apt-cache", "search", "--names-only",
		"^linux-image-"+regexp.QuoteMeta(d.series)+".*-"+regexp.QuoteMeta(d.flavour)+"$")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, line := range strings.Split(string(out), "\n") {
		if name, _, ok := strings.Cut(line, " - "); ok {
			names = append(names, name)
		}
	}
	return names, nil
}

// aptPackage is a package as apt would download it.
type aptPackage struct {
	version, depends string
	size             int64 // bytes
}

// show describes packages, in any order.
func (a *apt) show(ctx context.Context, names ...string) ([]aptPackage, error) {
	out, err := a.run(ctx, "", "apt-cache", append([]string{"show", "--no-all-versions"}, names...)...)
	if err != nil {
		return nil, err
	}
	var list []aptPackage
	for _, line := range strings.Split(string(out), "\n") {
		key, value, _ := strings.Cut(line, ": ")
		if key == "Package" {
			list = append(list, aptPackage{})
		}
		if len(list) == 0 {
			continue
		}
		switch p := &list[len(list)-1]; key {
		case "Version":
			p.version = value
		case "Depends":
			p.depends = value
		case "Size":
			if p.size, err = strconv.ParseInt(value, 10, 64); err != nil {
				return nil, fmt.Errorf("apt-cache show: size: %w", err)
			}
		}
	}
	if len(list) != len(names) {
		return nil, fmt.Errorf("%w: %s", errNoSuchPackage, strings.Join(names, ", "))
	}
	return list, nil
}

// download gets the packages into a new directory under tmp and returns their
// paths. apt checks them against the signed lists.
func (a *apt) download(ctx context.Context, names []string, tmp string) ([]string, error) {
	dir, err := os.MkdirTemp(tmp, "download-")
	if err != nil {
		return nil, err
	}
	args := []string{"-q", "-o", "Acquire::Retries=2"}
	if os.Getuid() == 0 {
		args = append(args, "-o", "APT::Sandbox::User=root")
	}
	if _, err := a.run(ctx, dir, "apt-get", append(append(args, "download"), names...)...); err != nil {
		return nil, err
	}
	found, err := filepath.Glob(filepath.Join(globQuote(dir), "*.deb"))
	if err != nil {
		return nil, err
	}
	if len(found) != len(names) {
		return nil, fmt.Errorf("apt-get download %s: %d files came of it", strings.Join(names, " "), len(found))
	}
	return found, nil
}

// run runs a command and returns its standard output. Its error is the first
// line that apt marks as one.
func (a *apt) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
	if a.conf != "" {
		cmd.Env = append(cmd.Env, "APT_CONFIG="+a.conf)
	}
	var out, errOut limitedBuffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	// apt's download methods are processes of their own: all go at once.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		for _, line := range strings.Split(errOut.b.String(), "\n") {
			if msg, ok := strings.CutPrefix(line, "E: "); ok {
				return nil, fmt.Errorf("%s: %s", name, strings.TrimSpace(msg))
			}
		}
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out.b.Bytes(), nil
}

// limitedBuffer keeps the first maxAptOutput bytes. The buffer is a field, not
// embedded: its ReadFrom would go past the limit.
type limitedBuffer struct{ b bytes.Buffer }

func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.b.Write(p[:min(len(p), maxAptOutput-l.b.Len())])
	return len(p), nil
}
