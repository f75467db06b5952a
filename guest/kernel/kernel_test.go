package kernel

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestResolve_Layouts(t *testing.T) {
	for _, c := range []struct {
		name  string
		files map[string][]byte
		spec  string // below the directory
		image string // what is expected, below the directory
		mods  string
	}{
		{"file", map[string][]byte{"k/bz": bzImage("1.2.3")}, "k/bz", "k/bz", ""},
		{"vmlinux", map[string][]byte{"vm": vmlinux("1.2.3")}, "vm", "vm", ""},
		{"build tree", map[string][]byte{"arch/x86/boot/bzImage": bzImage("1.2.3"), "vmlinux": vmlinux("1.2.3"), "modules.order": nil}, ".", "arch/x86/boot/bzImage", "."},
		{"build tree, vmlinux alone", map[string][]byte{"vmlinux": vmlinux("1.2.3"), ".config": nil, "modules.builtin": nil}, ".", "vmlinux", "."},
		{"unpacked package", map[string][]byte{"boot/vmlinuz-1.2.3": bzImage("1.2.3"), "lib/modules/1.2.3/modules.dep": nil}, ".", "boot/vmlinuz-1.2.3", "lib/modules/1.2.3"},
		{"newest", map[string][]byte{"boot/vmlinuz-6.9.1": bzImage("6.9.1"), "boot/vmlinuz-6.12.1": bzImage("6.12.1")}, ".", "boot/vmlinuz-6.12.1", ""},
		{"boot directory", map[string][]byte{"boot/vmlinuz-1.2.3": bzImage("1.2.3"), "lib/modules/1.2.3/modules.order": nil}, "boot", "boot/vmlinuz-1.2.3", "lib/modules/1.2.3"},
		{"beside its modules", map[string][]byte{"1.2.3/vmlinuz": bzImage("1.2.3"), "1.2.3/modules.dep": nil}, "1.2.3", "1.2.3/vmlinuz", "1.2.3"},
		{"merged /usr", map[string][]byte{"boot/vmlinuz-1.2.3": bzImage("1.2.3"), "usr/lib/modules/1.2.3/modules.dep": nil}, ".", "boot/vmlinuz-1.2.3", "usr/lib/modules/1.2.3"},
		{"odd name", map[string][]byte{"[x]*?/boot/vmlinuz-1.2.3": bzImage("1.2.3")}, "[x]*?", "[x]*?/boot/vmlinuz-1.2.3", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, b := range c.files {
				write(t, filepath.Join(dir, name), b)
			}
			k, err := Resolve(t.Context(), filepath.Join(dir, c.spec), Options{CacheDir: filepath.Join(t.TempDir(), "cache")})
			if err != nil {
				t.Fatal(err)
			}
			got := k.Image
			if got == "" {
				got = k.Vmlinux
			}
			if want := filepath.Join(dir, c.image); got != want {
				t.Errorf("image %s, want %s", got, want)
			}
			want := ""
			if c.mods != "" {
				want = filepath.Join(dir, c.mods)
			}
			if k.ModuleDir != want {
				t.Errorf("modules %q, want %q", k.ModuleDir, want)
			}
			if k.Release != "" && !strings.Contains("1.2.3 6.12.1", k.Release) {
				t.Errorf("release %q", k.Release)
			}
			if (k.Vmlinux == got) != bytes.HasPrefix(c.files[c.image], []byte("\x7fELF")) {
				t.Errorf("image %q, vmlinux %q", k.Image, k.Vmlinux)
			}
		})
	}
}

func TestResolve_Refused(t *testing.T) {
	dir := t.TempDir()
	o := Options{CacheDir: filepath.Join(dir, "cache"), Offline: true}
	text := write(t, filepath.Join(dir, "text"), []byte("#!/bin/sh\necho no kernel\n"))
	empty := write(t, filepath.Join(dir, "empty"), nil)
	short := write(t, filepath.Join(dir, "short"), bzImage("1.2.3")[:0x210])
	image := write(t, filepath.Join(dir, "bzImage"), bzImage("1.2.3"))
	none := filepath.Join(dir, "none")
	if err := os.Mkdir(filepath.Join(dir, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", filepath.Join(dir, "loop")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		spec, modules string
		want          string
	}{
		{text, "", "neither a bzImage nor an ELF kernel"},
		{empty, "", "neither a bzImage nor an ELF kernel"},
		{short, "", "neither a bzImage nor an ELF kernel"},
		{none, "", "no such file or directory"},
		{filepath.Join(dir, "d"), "", "no kernel in this directory"},
		{filepath.Join(dir, "loop"), "", "too many levels of symbolic links"},
		{"/dev/null", "", "not a regular file"},
		{"debian:6.12", "", "hvpost kernel fetch debian:6.12"},
		{"debian:", "", "bad series"},
		{"debian:../x", "", "bad series"},
		{"debian:6.12:arm64", "", "bad flavour"},
		{"no-such-name", "", "nor a kernel in the cache"},
		{"..", "", "no kernel in this directory"},
		{image, none, "no modules.dep or modules.order"},
	} {
		k, err := Resolve(t.Context(), c.spec, Options{CacheDir: o.CacheDir, Offline: true, ModuleDir: c.modules})
		if err == nil {
			t.Errorf("%s: accepted: %+v", c.spec, k)
			continue
		}
		if msg := err.Error(); !strings.Contains(msg, c.want) || strings.Contains(msg, "\n") {
			t.Errorf("%s: error %q, want one line with %q", c.spec, msg, c.want)
		}
	}
}

func TestResolve_Default(t *testing.T) {
	dir := t.TempDir()
	o := Options{CacheDir: filepath.Join(dir, "cache"), Offline: true}
	image := write(t, filepath.Join(dir, "bzImage"), bzImage("1.2.3"))
	t.Setenv(EnvKernel, image)
	k, err := Resolve(t.Context(), "", o)
	if err != nil || k.Image != image {
		t.Fatalf("$%s: %+v, %v", EnvKernel, k, err)
	}
	// An image that was booted from elsewhere is not a default, and the empty
	// cache says what to do. A host with a usable kernel of its own is fine
	// too.
	t.Setenv(EnvKernel, "")
	k, err = Resolve(t.Context(), "", o)
	if err == nil && !strings.HasPrefix(k.Image, "/boot/") && !strings.HasPrefix(k.Image, "/lib/modules/") {
		t.Errorf("empty cache: %+v", k)
	}
	if err != nil && (!errors.Is(err, ErrNoKernel) || !strings.Contains(err.Error(), "hvpost kernel fetch")) {
		t.Errorf("empty cache: %v", err)
	}
	deb := write(t, filepath.Join(dir, "a.deb"), makeDeb(t, ".xz", "amd64", kernelFiles()))
	if _, err := Resolve(t.Context(), deb, o); err != nil {
		t.Fatal(err)
	}
	if k, err = Resolve(t.Context(), "", o); err != nil || k.Release == "1.2.3" {
		t.Errorf("default: %+v, %v", k, err)
	}
}

func TestResolve_ModuleDir(t *testing.T) {
	dir := t.TempDir()
	image := write(t, filepath.Join(dir, "bzImage"), bzImage("1.2.3"))
	own := filepath.Join(dir, "m/lib/modules/1.2.3")
	write(t, filepath.Join(own, "modules.dep"), []byte("kernel/a.ko:\n"))
	write(t, filepath.Join(own, "kernel/a.ko"), ko())
	for _, m := range []string{own, filepath.Dir(own), filepath.Join(dir, "m")} {
		k, err := Resolve(t.Context(), image, Options{CacheDir: filepath.Join(dir, "cache"), ModuleDir: m})
		if err != nil || k.ModuleDir != own {
			t.Errorf("%s: %+v, %v", m, k, err)
			continue
		}
		if mods, err := k.Modules("a"); err != nil || len(mods) != 1 {
			t.Errorf("%s: %v, %v", m, mods, err)
		}
	}
}

func TestResolve_Unpacks(t *testing.T) {
	dir := t.TempDir()
	image := write(t, filepath.Join(dir, "bzImage"), bzImage("1.2.3"))
	calls := 0
	o := Options{CacheDir: filepath.Join(dir, "cache"), Unpacker: func(f *os.File, w io.Writer) error {
		calls++
		b, err := io.ReadAll(f)
		if err != nil {
			return err
		}
		_, err = w.Write(append([]byte("unpacked "), b[0x800:0x805]...))
		return err
	}}
	for range 2 {
		k, err := Resolve(t.Context(), image, o)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(k.Vmlinux); err != nil || string(b) != "unpacked 1.2.3" || k.Image != image {
			t.Errorf("%+v holds %q, %v", k, b, err)
		}
	}
	if calls != 1 {
		t.Errorf("unpacked %d times", calls)
	}
	// A new build in its place is unpacked anew.
	write(t, image, append(bzImage("1.2.4"), 0))
	k, err := Resolve(t.Context(), image, o)
	if err != nil || k.Release != "1.2.4" {
		t.Fatalf("%+v, %v", k, err)
	}
	if b, err := os.ReadFile(k.Vmlinux); err != nil || string(b) != "unpacked 1.2.4" {
		t.Errorf("after the rebuild: %q, %v", b, err)
	}
	if got := leftovers(t, o.CacheDir); len(got) != 1 {
		t.Errorf("cache holds %v", got)
	}
}

func TestResolve_UnpackFails(t *testing.T) {
	dir := t.TempDir()
	image := write(t, filepath.Join(dir, "bzImage"), bzImage("1.2.3"))
	boom := errors.New("boom")
	o := Options{CacheDir: filepath.Join(dir, "cache"), Unpacker: func(_ *os.File, w io.Writer) error {
		w.Write([]byte("half of it"))
		return boom
	}}
	if _, err := Resolve(t.Context(), image, o); !errors.Is(err, boom) || !strings.Contains(err.Error(), image) {
		t.Errorf("error %v", err)
	}
	for _, name := range leftovers(t, o.CacheDir) {
		list, err := os.ReadDir(filepath.Join(o.CacheDir, name))
		if err != nil || len(list) != 1 || list[0].Name() != metaFile {
			t.Errorf("left behind: %v, %v", list, err)
		}
	}
}

// A cache that cannot be written serves what it has and puts the rest
// elsewhere. Nobody can make files in /proc, not even root.
func TestResolve_ReadOnlyCache(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	image := write(t, filepath.Join(dir, "boot/vmlinuz-1.2.3"), bzImage("1.2.3"))
	write(t, filepath.Join(dir, "lib/modules/1.2.3/modules.order"), []byte("kernel/a.ko\n"))
	write(t, filepath.Join(dir, "lib/modules/1.2.3/kernel/a.ko.xz"), compress(t, ".xz", ko()))
	o := Options{CacheDir: "/sys/hvpost-test", Unpacker: func(_ *os.File, w io.Writer) error {
		_, err := w.Write(vmlinux("1.2.3"))
		return err
	}}
	for range 2 {
		k, err := Resolve(t.Context(), image, o)
		if err != nil {
			t.Fatal(err)
		}
		mods, err := k.Modules("a")
		if err != nil || len(mods) != 1 {
			t.Fatalf("%v, %v", mods, err)
		}
		for _, p := range []string{k.Vmlinux, mods[0].Path} {
			if !strings.HasPrefix(p, dir) {
				t.Errorf("%s is not in the spare directory", p)
			}
		}
	}
	// An entry that was made while the cache could be written, and now not.
	e := &entry{root: "/sys/hvpost-test", name: "x", meta: meta{Image: image0(t, image), ImagePath: image}}
	c, err := openCache("/sys/hvpost-test")
	if err != nil {
		t.Fatal(err)
	}
	p, err := c.unpack(e, o)
	if err != nil || !strings.HasPrefix(p, dir) {
		t.Errorf("unpacked to %q, %v", p, err)
	}
	if again, err := c.unpack(e, Options{}); err != nil || again != p {
		t.Errorf("found %q, %v", again, err)
	}
	// Somebody else's directory in the spare's place is not used.
	top := filepath.Dir(c.spare)
	if err := os.RemoveAll(top); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, top); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(t.Context(), image, o); err == nil || !strings.Contains(err.Error(), "not a directory of this user alone") {
		t.Errorf("a link in the spare directory's place: %v", err)
	}
}

func image0(t *testing.T, path string) image {
	t.Helper()
	im, err := probeImage(path)
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func TestReadImage(t *testing.T) {
	big := append(make([]byte, 3<<20), "Linux version 9.9.9 (x)"...)
	copy(big, "\x7fELF")
	split := make([]byte, 64<<10)
	copy(split, "\x7fELF")
	copy(split[32<<10-7:], "Linux version 7.7.7-split (x)") // across reads of 32 KiB
	decoy := append([]byte("\x7fELF Linux version %s Linux version ../../x Linux version "), "8.8.8\n"...)
	badString := bzImage("1.2.3")
	badString[0x20e], badString[0x20f] = 0xff, 0xff
	for _, c := range []struct {
		name            string
		b               []byte
		format, release string
	}{
		{"bzImage", bzImage("6.1.0-56-cloud-amd64"), formatBzImage, "6.1.0-56-cloud-amd64"},
		{"version string past the end", badString, formatBzImage, ""},
		{"path as release", bzImage("1/../../x"), formatBzImage, ""},
		{"vmlinux", vmlinux("6.1.0"), formatELF, "6.1.0"},
		{"banner far in", big, formatELF, "9.9.9"},
		{"banner across reads", split, formatELF, "7.7.7-split"},
		{"decoys", decoy, formatELF, "8.8.8"},
		{"ELF that is no Linux", []byte("\x7fELF\x01\x01\x01 a multiboot kernel"), formatELF, ""},
	} {
		im, err := readImage(bytes.NewReader(c.b))
		if err != nil || im.Format != c.format || im.Release != c.release || im.Size != int64(len(c.b)) {
			t.Errorf("%s: %+v, %v", c.name, im, err)
		}
	}
}

func TestListRemove(t *testing.T) {
	dir := t.TempDir()
	o := Options{CacheDir: filepath.Join(dir, "cache")}
	if list, err := List(o); err != nil || len(list) != 0 {
		t.Errorf("empty cache: %v, %v", list, err)
	}
	deb := write(t, filepath.Join(dir, "a.deb"), makeDeb(t, ".xz", "amd64", kernelFiles()))
	image := write(t, filepath.Join(dir, "bzImage"), bzImage("6.10.0"))
	for _, spec := range []string{deb, image} {
		if _, err := Resolve(t.Context(), spec, o); err != nil {
			t.Fatal(err)
		}
	}
	write(t, filepath.Join(o.CacheDir, "junk", "meta.json"), []byte("{"))
	list, err := List(o)
	if err != nil || len(list) != 2 {
		t.Fatalf("%v, %v", list, err)
	}
	if list[0].Release != "6.10.0" || list[0].Package || list[0].Source != image || list[1].Name != testRelease || !list[1].Package || list[1].Size == 0 {
		t.Errorf("%+v", list)
	}
	for _, bad := range []string{"", ".", "..", ".locks", "junk", "nosuch", "../cache/" + testRelease, testRelease + "/boot"} {
		if err := Remove(bad, o); !errors.Is(err, ErrNotFound) {
			t.Errorf("Remove(%q): %v", bad, err)
		}
	}
	for _, e := range list {
		if err := Remove(e.Name, o); err != nil {
			t.Error(err)
		}
	}
	if got := leftovers(t, o.CacheDir); len(got) != 1 || got[0] != "junk" {
		t.Errorf("cache holds %v", got)
	}
	if _, err := Resolve(t.Context(), testRelease, o); err == nil {
		t.Error("a removed kernel was found")
	}
}

func TestCompareReleases(t *testing.T) {
	ordered := []string{"", "5.10.0", "6.1", "6.1.0-9-cloud-amd64", "6.1.0-56-amd64", "6.1.0-56-cloud-amd64", "6.1.9", "6.2.0", "6.12.9+bpo", "6.12.90+deb12", "6.12.117+deb12", "10.0.0"}
	for i, a := range ordered {
		for j, b := range ordered {
			got := compareReleases(a, b)
			if (got < 0) != (i < j) || (got > 0) != (i > j) {
				t.Errorf("compare(%q, %q) = %d", a, b, got)
			}
		}
	}
}

func TestHasHyperV(t *testing.T) {
	dir := t.TempDir()
	module := moduleTree(t, dir, map[string][]byte{"modules.order": []byte("kernel/hv_vmbus.ko\n"), "kernel/hv_vmbus.ko": ko()})
	builtin := moduleTree(t, filepath.Join(dir, "b"), map[string][]byte{"modules.builtin": []byte("kernel/drivers/hv/hv_vmbus.ko\n")})
	without := moduleTree(t, filepath.Join(dir, "w"), map[string][]byte{"modules.order": []byte("kernel/a.ko\n"), "kernel/a.ko": ko()})
	for _, c := range []struct {
		name string
		k    *Kernel
		want bool
	}{
		{"module", module, true},
		{"built in", builtin, true},
		{"neither", without, false},
		{"nothing known", &Kernel{Release: "6.1.0"}, false},
		{"config", &Kernel{Release: "6.1.0", Config: Config("CONFIG_HYPERV=y\n")}, true},
		{"module that is not there", &Kernel{Release: "6.1.0", Config: Config("CONFIG_HYPERV=m\n")}, false},
		{"new config without VMBus", &Kernel{Release: "6.18.2", Config: Config("CONFIG_HYPERV=y\n")}, false},
		{"new config", &Kernel{Release: "6.18.2", Config: Config("CONFIG_HYPERV=y\nCONFIG_HYPERV_VMBUS=y\n")}, true},
	} {
		if got := c.k.hasHyperV(); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
