package kernel

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func TestImportDeb(t *testing.T) {
	for _, ext := range []string{"", ".gz", ".xz", ".zst"} {
		t.Run("data.tar"+ext, func(t *testing.T) {
			dir := t.TempDir()
			deb := write(t, filepath.Join(dir, "linux.deb"), makeDeb(t, ext, "amd64", kernelFiles()))
			o := Options{CacheDir: filepath.Join(dir, "cache")}
			k, err := Resolve(t.Context(), deb, o)
			if err != nil {
				t.Fatal(err)
			}
			if k.Release != testRelease || k.Name != testRelease || k.Source != "linux-image-"+testRelease+" 1.0" {
				t.Errorf("release %q, name %q, source %q", k.Release, k.Name, k.Source)
			}
			got, err := os.ReadFile(k.Image)
			if err != nil || !bytes.Equal(got, bzImage(testRelease)) {
				t.Errorf("image differs (%v)", err)
			}
			if !k.Config.Enabled("HYPERV") || k.Config.BuiltIn("CONFIG_HYPERV") || k.Config.Value("LOCALVERSION") != "-test" || k.Config.Enabled("X") {
				t.Errorf("config %v", k.Config)
			}
			entry := filepath.Join(o.CacheDir, testRelease)
			for _, absent := range []string{"usr", "boot/System.map-" + testRelease, "lib/modules/" + testRelease + "/build"} {
				if _, err := os.Lstat(filepath.Join(entry, absent)); !os.IsNotExist(err) {
					t.Errorf("%s was extracted (%v)", absent, err)
				}
			}
			mods, err := k.Modules("hv-netvsc")
			if err != nil || len(mods) != 2 || mods[0].Name != "hv_vmbus" || mods[1].Name != "hv_netvsc" {
				t.Errorf("modules %v, %v", mods, err)
			}
			// Found again by the file, by its name, and as the default.
			for _, spec := range []string{deb, testRelease} {
				again, err := Resolve(t.Context(), spec, o)
				if err != nil || again.Image != k.Image || again.SHA256 != k.SHA256 {
					t.Errorf("Resolve(%q) again: %+v, %v", spec, again, err)
				}
			}
			if got := leftovers(t, o.CacheDir); len(got) != 1 {
				t.Errorf("cache holds %v", got)
			}
		})
	}
}

func TestImportDeb_MergedUsr(t *testing.T) {
	files := kernelFiles()
	for i := range files {
		files[i].name = strings.Replace(files[i].name, "./lib/", "./usr/lib/", 1)
	}
	dir := t.TempDir()
	deb := write(t, filepath.Join(dir, "a.deb"), makeDeb(t, ".xz", "amd64", files))
	k, err := Resolve(t.Context(), deb, Options{CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		t.Fatal(err)
	}
	if mods, err := k.Modules("z_foo"); err != nil || len(mods) != 3 {
		t.Errorf("modules %v, %v", mods, err)
	}
}

func TestImportDeb_Refused(t *testing.T) {
	good := kernelFiles()
	with := func(extra ...file) []file { return append(kernelFiles(), extra...) }
	without := func(part string) []file {
		var f []file
		for _, g := range good {
			if !strings.Contains(g.name, part) {
				f = append(f, g)
			}
		}
		return f
	}
	corrupt := makeDeb(t, ".xz", "amd64", good)
	corrupt[len(corrupt)-200] ^= 0x40
	hugeDict := makeDeb(t, ".xz", "amd64", good)
	// Block header: size, flags, filter id 0x21, 1 byte of properties, dictionary.
	i := bytes.LastIndex(hugeDict, []byte("\xfd7zXZ\x00"))
	hugeDict[i+12+4] = 40
	negative := makeDeb(t, "", "amd64", good)
	copy(negative[8+48:], "-1        ")
	cases := []struct {
		name string
		deb  []byte
		want string
	}{
		{"empty", nil, "not a Debian package"},
		{"text", []byte("hello, this is not a package at all\n"), "not a Debian package"},
		{"ar without members", []byte("!<arch>\n"), "not a Debian package"},
		{"first member", arFile(member{"control.tar", nil}), "first member"},
		{"version", arFile(member{"debian-binary", []byte("3.0\n")}), "version"},
		{"no data", arFile(member{"debian-binary", []byte("2.0\n")}, member{"control.tar", nil}), "no data.tar"},
		{"member name of two lines", []byte("!<arch>\nde  `\n\x1f\x8b\bAary   000000000000000000000000000000004         `\n"), "truncated"},
		{"file name of two lines", makeDeb(t, "", "amd64", with(file{name: "lib/modules/a\nb", data: []byte("x")})), "control characters"},
		{"negative size", negative, "no size"},
		{"no kernel", makeDeb(t, ".xz", "amd64", without("vmlinuz")), "without a kernel"},
		{"empty data", makeDeb(t, ".gz", "amd64", nil), "without a kernel"},
		{"arch", makeDeb(t, ".xz", "arm64", good), "package for arm64"},
		{"two kernels", makeDeb(t, ".xz", "amd64", with(file{name: "boot/vmlinuz-other", data: bzImage("1.2.3")})), "two kernels"},
		{"kernel is text", makeDeb(t, ".xz", "amd64", append(without("vmlinuz"), file{name: "boot/vmlinuz-1", data: []byte("#!/bin/sh\n")})), "neither a bzImage nor"},
		{"kernel is a link", makeDeb(t, ".xz", "amd64", append(without("vmlinuz"), file{name: "boot/vmlinuz-1", typ: tar.TypeSymlink, link: "/etc/passwd"})), "without a kernel"},
		{"traversal", makeDeb(t, ".xz", "amd64", with(file{name: "./lib/modules/../../../../evil", data: []byte("x")})), "leaves the archive"},
		{"traversal at the front", makeDeb(t, ".xz", "amd64", with(file{name: "../evil", data: []byte("x")})), "leaves the archive"},
		{"file as directory", makeDeb(t, ".xz", "amd64", with(file{name: "lib/modules/" + testRelease + "/modules.order/x", data: []byte("x")})), "modules.order: file exists"},
		{"corrupt", corrupt, "data.tar"},
		{"huge dictionary", hugeDict, "xz: dictionary of"},
	}
	for n := 1; n < 8; n++ {
		whole := makeDeb(t, ".zst", "amd64", good)
		cases = append(cases, struct {
			name string
			deb  []byte
			want string
		}{"truncated", whole[:len(whole)*n/8], "truncated"})
	}
	// A whole ar member around a stream that ends early.
	for _, ext := range []string{".gz", ".xz", ".zst"} {
		data := compress(t, ext, tarball(t, good))
		control := compress(t, ext, tarball(t, []file{{name: "control", data: []byte("Architecture: amd64\n")}}))
		cases = append(cases, struct {
			name string
			deb  []byte
			want string
		}{"stream cut" + ext, arFile(member{"debian-binary", []byte("2.0\n")}, member{"control.tar" + ext, control}, member{"data.tar" + ext, data[:len(data)*2/3]}), "data.tar"})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			deb := write(t, filepath.Join(dir, "in", "bad.deb"), c.deb)
			o := Options{CacheDir: filepath.Join(dir, "cache")}
			k, err := Resolve(t.Context(), deb, o)
			if err == nil {
				t.Fatalf("accepted: %+v", k)
			}
			msg := err.Error()
			if !strings.Contains(msg, c.want) || !strings.Contains(msg, deb) || strings.Contains(msg, "\n") {
				t.Errorf("error %q: want one line with %q and the file's name", msg, c.want)
			}
			if got := leftovers(t, o.CacheDir); len(got) != 0 {
				t.Errorf("left behind: %v", got)
			}
			if got := leftovers(t, dir); len(got) > 2 {
				t.Errorf("written outside the cache: %v", got)
			}
		})
	}
}

func TestImportDeb_NotRegular(t *testing.T) {
	dir := t.TempDir()
	if _, err := Resolve(t.Context(), filepath.Join(dir, "none.deb"), Options{CacheDir: dir}); err == nil || !strings.Contains(err.Error(), "none.deb") {
		t.Errorf("missing file: %v", err)
	}
	// Opening a FIFO would block for ever.
	fifo := filepath.Join(dir, "fifo.deb")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Resolve(t.Context(), fifo, Options{CacheDir: dir}); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("FIFO: %v", err)
	}
}

func TestImportDeb_Cancelled(t *testing.T) {
	dir := t.TempDir()
	deb := write(t, filepath.Join(dir, "a.deb"), makeDeb(t, ".xz", "amd64", kernelFiles()))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	o := Options{CacheDir: filepath.Join(dir, "cache")}
	if _, err := Resolve(ctx, deb, o); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	if got := leftovers(t, o.CacheDir); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
}

// Two packages of one release are both kept.
func TestImportDeb_SameRelease(t *testing.T) {
	dir := t.TempDir()
	o := Options{CacheDir: filepath.Join(dir, "cache")}
	a := write(t, filepath.Join(dir, "a.deb"), makeDeb(t, ".xz", "amd64", kernelFiles()))
	b := write(t, filepath.Join(dir, "b.deb"), makeDeb(t, ".gz", "amd64", kernelFiles()))
	ka, err := Resolve(t.Context(), a, o)
	if err != nil {
		t.Fatal(err)
	}
	kb, err := Resolve(t.Context(), b, o)
	if err != nil {
		t.Fatal(err)
	}
	if ka.Name == kb.Name || !strings.HasPrefix(kb.Name, testRelease+"-") {
		t.Errorf("names %q and %q", ka.Name, kb.Name)
	}
	// The same bytes under another name are the same kernel.
	c := write(t, filepath.Join(dir, "c.deb"), makeDeb(t, ".gz", "amd64", kernelFiles()))
	if kc, err := Resolve(t.Context(), c, o); err != nil || kc.Name != kb.Name {
		t.Errorf("copy: %+v, %v", kc, err)
	}
}

func TestHammerImportDeb(t *testing.T) {
	dir := t.TempDir()
	deb := write(t, filepath.Join(dir, "a.deb"), makeDeb(t, ".xz", "amd64", kernelFiles()))
	o := Options{CacheDir: filepath.Join(dir, "cache"), Unpacker: func(_ *os.File, w io.Writer) error {
		_, err := w.Write(vmlinux(testRelease))
		return err
	}}
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			k, err := Resolve(t.Context(), deb, o)
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(k.Vmlinux); err != nil || !bytes.Equal(b, vmlinux(testRelease)) {
				t.Errorf("vmlinux of %d bytes, %v", len(b), err)
			}
			if mods, err := k.Modules("hv_netvsc", "z_foo"); err != nil || len(mods) != 3 {
				t.Errorf("modules %v, %v", mods, err)
			}
		})
	}
	wg.Wait()
	if got := leftovers(t, o.CacheDir); len(got) != 1 || got[0] != testRelease {
		t.Errorf("cache holds %v", got)
	}
}

func FuzzDeb(f *testing.F) {
	good := kernelFiles()
	for _, ext := range []string{"", ".gz", ".xz", ".zst"} {
		f.Add(makeDeb(f, ext, "amd64", good[:6]))
	}
	f.Add(makeDeb(f, "", "amd64", []file{{name: "../x"}, {name: "/boot/vmlinuz", typ: tar.TypeLink, link: "../../y"}}))
	f.Add(arFile(member{"debian-binary", []byte("2.0\n")}))
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &debFile{file: bytes.NewReader(b), size: int64(len(b))}
		err := d.open()
		if err != nil {
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error of several lines: %q", err)
			}
			return
		}
		var total int64
		err = d.walk(t.Context(), func(h *tar.Header, name string, body io.Reader) error {
			if filepath.IsAbs(name) || name == ".." || strings.HasPrefix(name, "../") {
				t.Errorf("name %q leaves the archive", name)
			}
			n, err := copyBounded(io.Discard, body, 1<<20)
			if total += n; total > 4<<20 && err == nil {
				err = errTooBig // a bomb: the bounds are tested elsewhere
			}
			return err
		})
		if err != nil && strings.Contains(err.Error(), "\n") {
			t.Errorf("error of several lines: %q", err)
		}
	})
}

// Since its 6.19, Debian has a kernel in three packages and an empty fourth.
func splitDebs(t testing.TB) map[string][]byte {
	dir := "./usr/lib/modules/" + testRelease + "/"
	deb := func(part string, files ...file) []byte {
		control := "Package: linux-" + part + "-" + testRelease + "-cloud-amd64\nVersion: 1.0\nArchitecture: amd64\n"
		return arFile(
			member{"debian-binary", []byte("2.0\n")},
			member{"control.tar.xz", compress(t, ".xz", tarball(t, []file{{name: "./control", data: []byte(control)}}))},
			member{"data.tar.xz", compress(t, ".xz", tarball(t, files))},
		)
	}
	return map[string][]byte{
		"base": deb("base", file{name: dir + "config", data: []byte("CONFIG_HYPERV=y\n")}, file{name: dir + "modules.builtin", data: nil},
			file{name: dir + "modules.order", data: []byte("kernel/hv_netvsc.ko\n")}, file{name: dir + "System.map", data: nil}),
		"binary":  deb("binary", file{name: dir + "vmlinuz", data: bzImage(testRelease)}),
		"modules": deb("modules", file{name: dir + "kernel/hv_netvsc.ko", data: ko("license=GPL")}),
		"image":   deb("image", file{name: "./usr/share/doc/x", data: []byte("text")}),
	}
}

func TestImportDeb_Split(t *testing.T) {
	dir := t.TempDir()
	debs := splitDebs(t)
	o := Options{CacheDir: filepath.Join(dir, "cache")}
	var files []string
	for _, part := range []string{"base", "binary", "modules"} {
		files = append(files, write(t, filepath.Join(dir, "debs", "linux-"+part+".deb"), debs[part]))
	}
	all := strings.Join(files, ",")
	for _, spec := range []string{all, all, filepath.Join(dir, "debs"), testRelease} {
		k, err := Resolve(t.Context(), spec, o)
		if err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		if k.Name != testRelease || !k.Config.BuiltIn("HYPERV") || k.Source != "linux-binary-"+testRelease+"-cloud-amd64 1.0" {
			t.Errorf("%s: %+v", spec, k)
		}
		if mods, err := k.Modules("hv_netvsc"); err != nil || len(mods) != 1 {
			t.Errorf("%s: %v, %v", spec, mods, err)
		}
	}
	if got := leftovers(t, o.CacheDir); len(got) != 1 {
		t.Errorf("cache holds %v", got)
	}
	// The image alone boots; the empty package says what to do.
	if k, err := Resolve(t.Context(), files[1], o); err != nil || k.Release != testRelease {
		t.Errorf("image alone: %+v, %v", k, err)
	}
	empty := write(t, filepath.Join(dir, "linux-image.deb"), debs["image"])
	if _, err := Resolve(t.Context(), empty, o); err == nil || !strings.Contains(err.Error(), "linux-binary-*") || !strings.Contains(err.Error(), empty) {
		t.Errorf("empty package: %v", err)
	}
	if _, err := Resolve(t.Context(), files[0]+","+filepath.Join(dir, "none.deb"), o); err == nil || !strings.Contains(err.Error(), "none.deb: no such file") {
		t.Errorf("one of two missing: %v", err)
	}
}

// What is in the way of an entry but is none (damaged, half removed) goes.
func TestImportDeb_OverJunk(t *testing.T) {
	dir := t.TempDir()
	o := Options{CacheDir: filepath.Join(dir, "cache")}
	write(t, filepath.Join(o.CacheDir, testRelease, metaFile), []byte("{"))
	write(t, filepath.Join(o.CacheDir, testRelease, "boot/old"), nil)
	deb := write(t, filepath.Join(dir, "a.deb"), makeDeb(t, ".xz", "amd64", kernelFiles()))
	k, err := Resolve(t.Context(), deb, o)
	if err != nil || k.Name != testRelease {
		t.Fatalf("%+v, %v", k, err)
	}
	if got := leftovers(t, o.CacheDir); len(got) != 1 {
		t.Errorf("cache holds %v", got)
	}
}
