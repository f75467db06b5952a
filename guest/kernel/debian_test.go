package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParseDebian(t *testing.T) {
	for _, c := range []struct {
		spec string
		want debianSpec
		ok   bool
		err  bool
	}{
		{"debian", debianSpec{"", "cloud-amd64"}, true, false},
		{"debian:6.12", debianSpec{"6.12", "cloud-amd64"}, true, false},
		{"debian:6.12:amd64", debianSpec{"6.12", "amd64"}, true, false},
		{"debian::amd64", debianSpec{"", "amd64"}, true, false},
		{"debian:6.1:cloud", debianSpec{"6.1", "cloud-amd64"}, true, false},
		{"debian:6.12.117+deb12:rt-amd64", debianSpec{"6.12.117+deb12", "rt-amd64"}, true, false},
		{"debian:6.1.0-56", debianSpec{"6.1.0-56", "cloud-amd64"}, true, false},
		{"debian12", debianSpec{}, false, false},
		{"host", debianSpec{}, false, false},
		{"debian:6", debianSpec{}, true, true},
		{"debian:6.1 ", debianSpec{}, true, true},
		{"debian:6.1:", debianSpec{}, true, true},
		{"debian:6.1:-amd64", debianSpec{}, true, true},
		{"debian:6.1:arm64", debianSpec{}, true, true},
	} {
		d, ok, err := parseDebian(c.spec)
		if ok != c.ok || (err != nil) != c.err || ok && err == nil && d != c.want {
			t.Errorf("%q: %+v, %v, %v", c.spec, d, ok, err)
		}
		if ok && err == nil {
			if again, _, err := parseDebian(d.String()); err != nil || again != d {
				t.Errorf("%q: String gives %q, which is %+v, %v", c.spec, d, again, err)
			}
		}
	}
}

func TestDebianNewest(t *testing.T) {
	packages := []string{
		"linux-image-6.1.0-9-cloud-amd64", "linux-image-6.1.0-56-cloud-amd64", "linux-image-6.1.0-57-amd64",
		"linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64", "linux-image-amd64", "linux-headers-6.12.200-cloud-amd64",
		"linux-image-6.12.9+bpo-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64", "linux-image-6.12.118+deb12-cloud-amd64-unsigned",
		"linux-image-6.12.117+deb12-amd64", "linux-image-6.12.117+deb12-rt-amd64", "linux-image-6.1.0-58-rt-amd64-dbg",
	}
	for spec, want := range map[string]string{
		"debian":               "linux-image-6.12.117+deb12-cloud-amd64",
		"debian:6.1":           "linux-image-6.1.0-56-cloud-amd64",
		"debian:6.1.0":         "linux-image-6.1.0-56-cloud-amd64",
		"debian:6.1.0-9":       "linux-image-6.1.0-9-cloud-amd64",
		"debian:6.1.0-5":       "",
		"debian:6.12":          "linux-image-6.12.117+deb12-cloud-amd64",
		"debian:6.12.9":        "linux-image-6.12.9+bpo-cloud-amd64",
		"debian:6.12:amd64":    "linux-image-6.12.117+deb12-amd64",
		"debian:6.1:amd64":     "linux-image-6.1.0-57-amd64",
		"debian:6.12:rt-amd64": "linux-image-6.12.117+deb12-rt-amd64",
		"debian:6.13":          "",
	} {
		d, _, err := parseDebian(spec)
		if err != nil {
			t.Fatal(err)
		}
		if got := d.newest(packages); got != want {
			t.Errorf("%s: %q, want %q", spec, got, want)
		}
	}
}

// fakeApt puts apt tools into PATH that know one package when the state they
// run with is listed in known: "host", "fresh" (private lists of the host's
// sources) or "debian" (private lists of Debian's archive).
func fakeApt(t *testing.T, dir, deb, known string) {
	t.Helper()
	bin := filepath.Join(dir, "bin")
	state := `state=host
[ -n "$APT_CONFIG" ] && state=fresh
[ -n "$APT_CONFIG" ] && grep -q 'Dir::Etc::sourcelist' "$APT_CONFIG" && state=debian
case " ` + known + ` " in *" $state "*) known=yes;; *) known=no;; esac
echo "$state ${0##*/} $*" >> ` + filepath.Join(dir, "log") + "\n"
	name := "linux-image-" + testRelease + "-cloud-amd64"
	scripts := map[string]string{
		"apt-config": "echo 'Acquire::http::Proxy \"http://proxy.invalid\";'\necho 'APT::Update::Post-Invoke:: \"false\";'\n",
		"apt-get": `for last; do :; done
if [ "$last" = update ]; then
	grep -q proxy.invalid "$APT_CONFIG" && ! grep -q Post-Invoke "$APT_CONFIG" || { echo 'E: bad configuration' >&2; exit 100; }
	[ $known = yes ] || { echo 'W: noise' >&2; echo "E: Failed to fetch the $state lists" >&2; exit 100; }
	exit 0
fi
[ "$SLEEP" ] && { sleep 600 & wait; }
[ $known = yes ] || { echo 'E: Unable to locate package' >&2; exit 100; }
[ "$DOWNLOAD" = none ] || cp ` + deb + ` ./x.deb
`,
		"apt-cache": `[ "$1" = search ] && [ $known = yes ] && echo "` + name + ` - Linux" && echo "linux-image-9.9-cloud-amd64 - meta-package"
[ "$1" = show ] && printf 'Package: ` + name + `\nVersion: 1.0\nSize: 12345\nDescription: x\n'
exit 0
`,
	}
	for tool, text := range scripts {
		p := write(t, filepath.Join(bin, tool), []byte("#!/bin/sh\n"+state+text))
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	t.Setenv("APT_CONFIG", "")
	t.Setenv(EnvMirror, "http://mirror.invalid/debian")
}

func fakeDeb(t *testing.T, dir string) string {
	t.Helper()
	files := kernelFiles()
	control := fmt.Sprintf("Package: linux-image-%s-cloud-amd64\nVersion: 1.0\nArchitecture: amd64\n", testRelease)
	return write(t, filepath.Join(dir, "archive.deb"), arFile(
		member{"debian-binary", []byte("2.0\n")},
		member{"control.tar", tarball(t, []file{{name: "control", data: []byte(control)}})},
		member{"data.tar.xz", compress(t, ".xz", tarball(t, files))},
	))
}

func TestFetch(t *testing.T) {
	for _, c := range []struct{ known, via string }{{"host fresh debian", "host"}, {"fresh", "fresh"}, {"debian", "debian"}} {
		t.Run(c.known, func(t *testing.T) {
			dir := t.TempDir()
			if c.via == "debian" {
				keyring := false
				for _, k := range debianKeyrings {
					if _, err := os.Stat(k); err == nil {
						keyring = true
					}
				}
				if !keyring {
					debianKeyrings = append(debianKeyrings, write(t, filepath.Join(dir, "keyring"), nil))
					t.Cleanup(func() { debianKeyrings = debianKeyrings[:len(debianKeyrings)-1] })
				}
			}
			fakeApt(t, dir, fakeDeb(t, dir), c.known)
			var progress strings.Builder
			o := Options{CacheDir: filepath.Join(dir, "cache"), Progress: &progress}
			k, err := Fetch(t.Context(), "debian:6.9", o)
			if err != nil {
				t.Fatal(err)
			}
			if k.Release != testRelease || !strings.Contains(progress.String(), "fetching linux-image-6.9.1+test-cloud-amd64 1.0 (0.0 MB)\n") {
				t.Errorf("%+v, progress %q", k, progress.String())
			}
			log, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil || !strings.Contains(string(log), c.via+" apt-get -q -o Acquire::Retries=2") {
				t.Errorf("log %s, %v", log, err)
			}
			if got := leftovers(t, o.CacheDir); len(got) != 1 {
				t.Errorf("cache holds %v", got)
			}
			// What is there is not downloaded again, and needs no network.
			os.Remove(filepath.Join(dir, "archive.deb"))
			for _, get := range []func() (*Kernel, error){
				func() (*Kernel, error) { return Fetch(t.Context(), "debian:6.9", o) },
				func() (*Kernel, error) { return Resolve(t.Context(), "debian", o) },
			} {
				if again, err := get(); err != nil || again.Image != k.Image {
					t.Errorf("again: %+v, %v", again, err)
				}
			}
		})
	}
}

func TestFetch_Fails(t *testing.T) {
	dir := t.TempDir()
	deb := fakeDeb(t, dir)
	o := Options{CacheDir: filepath.Join(dir, "cache")}
	check := func(name, spec, want string) {
		t.Helper()
		_, err := Fetch(t.Context(), spec, o)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %q", name, err, want)
		}
		if got := leftovers(t, o.CacheDir); len(got) != 0 {
			t.Errorf("%s: left behind %v", name, got)
		}
	}
	fakeApt(t, dir, deb, "host fresh debian")
	check("no such series", "debian:4.4", "no such kernel in the package lists")
	check("not Debian's", "fedora:41", "only Debian's kernels can be fetched")
	fakeApt(t, dir, deb, "")
	check("no network", "debian:6.9", "Failed to fetch the fresh lists")
	fakeApt(t, dir, deb, "host")
	t.Setenv("DOWNLOAD", "none")
	check("nothing downloaded", "debian:6.9", "0 files came of it")
	t.Setenv("DOWNLOAD", "")
	bad := write(t, filepath.Join(dir, "bad.deb"), []byte("<html>proxy says no</html>"))
	fakeApt(t, dir, bad, "host")
	check("not a package", "debian:6.9", "not a Debian package")
	t.Setenv("PATH", dir)
	check("no apt", "debian:6.9", "pass -k FILE.deb")
}

// A kernel in several packages is fetched by the dependencies of the one that
// is named after it.
func TestFetch_Split(t *testing.T) {
	dir := t.TempDir()
	for part, b := range splitDebs(t) {
		write(t, filepath.Join(dir, "archive", part+".deb"), b)
	}
	fakeApt(t, dir, "", "host")
	abi := testRelease + "-cloud-amd64"
	// Over the fakes: "show" has dependencies, "download" takes many names.
	for tool, text := range map[string]string{
		"apt-cache": `[ "$1" = search ] && echo "linux-image-` + abi + ` - Linux"
[ "$1" = show ] && shift 2 && for p; do printf 'Package: %s\nVersion: 1.0\nSize: 1000000\nDepends: dracut | initramfs-tools, linux-base-` + abi + ` (= 1.0), linux-binary-` + abi + ` (= 1.0), linux-modules-` + abi + ` (= 1.0), linux-modules-other\n\n' "$p"; done
exit 0
`,
		"apt-get": `while [ "$1" != download ]; do shift; done; shift
for p; do p=${p#linux-}; cp ` + dir + `/archive/${p%%-*}.deb . ; done
`,
	} {
		p := write(t, filepath.Join(dir, "bin", tool), []byte("#!/bin/sh\n"+text))
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var progress strings.Builder
	o := Options{CacheDir: filepath.Join(dir, "cache"), Progress: &progress}
	for range 2 {
		k, err := Fetch(t.Context(), "debian:6.9", o)
		if err != nil {
			t.Fatal(err)
		}
		if mods, err := k.Modules("hv_netvsc"); err != nil || len(mods) != 1 || !k.Config.BuiltIn("HYPERV") {
			t.Errorf("%v, %v, config %v", mods, err, k.Config)
		}
	}
	if strings.Count(progress.String(), "fetching linux-image-"+abi+" 1.0 (3.0 MB)\n") != 1 {
		t.Errorf("progress %q", progress.String())
	}
	if k, err := Resolve(t.Context(), "debian", Options{CacheDir: o.CacheDir, Offline: true}); err != nil || k.Release != testRelease {
		t.Errorf("from the cache: %+v, %v", k, err)
	}
}

// Cancelling ends the download with all its processes, at once.
func TestFetch_Cancelled(t *testing.T) {
	dir := t.TempDir()
	fakeApt(t, dir, fakeDeb(t, dir), "host")
	t.Setenv("SLEEP", "yes")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	start := time.Now()
	o := Options{CacheDir: filepath.Join(dir, "cache")}
	_, err := Fetch(ctx, "debian:6.9", o)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(start); d > 4*time.Second {
		t.Errorf("took %v", d)
	}
	if got := leftovers(t, o.CacheDir); len(got) != 0 {
		t.Errorf("left behind %v", got)
	}
}
