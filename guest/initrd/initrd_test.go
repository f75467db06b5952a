package initrd

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hvpost/hvpost/guest"
	"github.com/u-root/u-root/pkg/cpio"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// tb is what tests and property checks share.
type tb interface {
	Helper()
	Fatal(...any)
	Fatalf(string, ...any)
}

func write(t testing.TB, path string, data []byte, perm fs.FileMode) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, perm); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, perm); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t testing.TB, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// archive builds the image and returns its bytes, checked against its own
// description.
func archive(t tb, b *Builder) []byte {
	t.Helper()
	im, err := b.Build()
	if err != nil {
		t.Fatal(err)
	}
	var buf bytes.Buffer
	n, err := im.WriteTo(&buf)
	if err != nil {
		t.Fatal(err)
	}
	if n != im.Size || int64(buf.Len()) != im.Size || n%imageAlign != 0 {
		t.Fatalf("wrote %d bytes of %d, have %d", n, im.Size, buf.Len())
	}
	off := int64(0)
	for _, p := range im.Parts {
		if p.Off != off || p.Size <= 0 || (p.Data == nil) != (p.Path != "") || p.Data != nil && int64(len(p.Data)) != p.Size {
			t.Fatalf("part %+v at %d", p, off)
		}
		off += p.Size
	}
	if off != im.Size {
		t.Fatalf("parts end at %d of %d", off, im.Size)
	}
	return buf.Bytes()
}

// records reads an archive back with another implementation.
func records(t tb, b []byte) map[string]cpio.Record {
	t.Helper()
	list, err := cpio.ReadAllRecords(cpio.Newc.Reader(bytes.NewReader(b)))
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]cpio.Record{}
	for _, r := range list {
		if _, dup := m[r.Name]; dup {
			t.Fatalf("%s is there twice", r.Name)
		}
		m[r.Name] = r
	}
	return m
}

func body(t tb, r cpio.Record) string {
	t.Helper()
	b, err := io.ReadAll(io.NewSectionReader(r, 0, int64(r.FileSize)))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBuild_Golden(t *testing.T) {
	b := New()
	must(t,
		b.AddBytes([]byte("hi\n"), "/d/f", 0o640),
		b.AddSymlink("d/f", "/l"),
		b.AddDevice("/c", 0o600|fs.ModeDevice|fs.ModeCharDevice, 5, 1),
	)
	h := func(ino, mode, nlink, size, major, minor, namesize int) string {
		return fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ino, mode, 0, 0, nlink, 0, size, 0, 0, major, minor, namesize, 0)
	}
	want := h(1, 0o020600, 1, 0, 5, 1, 2) + "c\x00" +
		h(2, 0o040755, 2, 0, 0, 0, 2) + "d\x00" +
		h(3, 0o100640, 1, 3, 0, 0, 4) + "d/f\x00\x00\x00" + "hi\n\x00" +
		h(4, 0o120777, 1, 3, 0, 0, 2) + "l\x00" + "d/f\x00" +
		h(0, 0, 1, 0, 0, 0, 11) + "TRAILER!!!\x00"
	want += strings.Repeat("\x00", (512-len(want)%512)%512)
	if got := string(archive(t, b)); got != want {
		t.Errorf("got\n%q\nwant\n%q", got, want)
	}
	// The first header, digit by digit, as cpio(1) writes it.
	const literal = "07070100000001" + "00002180" + "00000000" + "00000000" + "00000001" + "00000000" + "00000000" + "00000000" + "00000000" + "00000005" + "00000001" + "00000002" + "00000000" + "c\x00"
	if !strings.HasPrefix(want, literal) {
		t.Errorf("header %q", want[:len(literal)])
	}
}

func TestBuild_Deterministic(t *testing.T) {
	dir := t.TempDir()
	for i := range 20 {
		write(t, filepath.Join(dir, fmt.Sprintf("t/%d/f", i)), []byte{byte(i)}, 0o644)
	}
	build := func(keep bool) []byte {
		b := New()
		b.KeepTimes = keep
		must(t, b.AddTree(filepath.Join(dir, "t"), "/t"))
		return archive(t, b)
	}
	first := build(false)
	kept := build(true)
	if err := os.Chtimes(filepath.Join(dir, "t/3/f"), time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, build(false)) {
		t.Error("the image depends on modification times")
	}
	if bytes.Equal(kept, build(true)) {
		t.Error("KeepTimes does not keep times")
	}
	if r := records(t, build(true))["t/3/f"]; r.MTime != 1e9 {
		t.Errorf("time %d", r.MTime)
	}
}

func TestBuilder_Paths(t *testing.T) {
	dir := t.TempDir()
	host := write(t, filepath.Join(dir, "f"), []byte("host"), 0o750|fs.ModeSetuid)
	b := New()
	must(t,
		b.AddFile(host, "/a/b/c"),
		b.AddBytes([]byte("old"), "/x", 0o644),
		b.AddBytes([]byte("new"), "/x", 0o600), // the last one wins
		b.AddSymlink("usr/lib", "/lib"),
		b.AddBytes([]byte("1"), "/lib/one", 0o644), // through the link, into a directory made for it
		b.AddSymlink("/a/b", "/abs"),
		b.AddBytes([]byte("2"), "/abs/two", 0o644),
		b.AddSymlink("../../x/../a", "/a/b/up"),
		b.AddSymlink("nowhere", "/dangling"),
		b.AddDir("/a", 0o700), // keeps what is in it
		b.AddDir("/tmp", 0o777|fs.ModeSticky),
		b.AddDir("/empty", 0o755),
		b.AddBytes(nil, "/empty", 0o644), // an empty directory can be replaced
		b.AddBytes([]byte("3"), "//y/./z", 0o644),
		b.AddSymlink("elsewhere", "/x2"),
		b.AddBytes([]byte("4"), "/x2", 0o644), // replaces the link, does not follow it
	)
	r := records(t, archive(t, b))
	for name, want := range map[string]string{
		"a/b/c": "100000 host", "x": "100600 new", "usr/lib/one": "100644 1", "a/b/two": "100644 2", "y/z": "100644 3", "x2": "100644 4",
		"lib": "120777 usr/lib", "dangling": "120777 nowhere", "a": "40700 ", "tmp": "41777 ", "empty": "100644 ", "usr": "40755 ",
	} {
		if name == "a/b/c" {
			want = "104750 host"
		}
		got := "absent"
		if rec, ok := r[name]; ok {
			got = fmt.Sprintf("%o %s", rec.Mode, body(t, rec))
		}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if _, ok := r["elsewhere"]; ok {
		t.Error("the target of a replaced link was made")
	}
	if !b.Has("/lib/one") || !b.Has("/") || b.Has("/lib/none") || b.Has("/none/x") || b.Has("/x/y") || b.Has("relative") {
		t.Error("Has is wrong")
	}
	// Parents come before what is in them, or the kernel drops the file.
	seen := map[string]bool{".": true}
	for _, e := range b.Entries() {
		if p := e.Path[1:]; !seen[filepath.Dir(p)] {
			t.Errorf("%s comes before its parent", p)
		} else {
			seen[p] = true
		}
	}
}

func TestBuilder_Refused(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	big := filepath.Join(dir, "big")
	f, err := os.Create(big)
	must(t, err, f.Truncate(1<<32), f.Close()) // sparse
	host := write(t, filepath.Join(dir, "f"), []byte("x"), 0o644)
	b := New()
	must(t, b.AddBytes(nil, "/file", 0o644), b.AddBytes(nil, "/dir/in", 0o644), b.AddSymlink("loop2", "/loop1"), b.AddSymlink("loop1", "/loop2"), b.AddSymlink("file", "/tofile"))
	for _, c := range []struct {
		name string
		err  error
		want string
	}{
		{"relative", b.AddFile(host, "x"), "not absolute"},
		{"empty", b.AddFile(host, ""), "not absolute"},
		{"parent", b.AddFile(host, "/a/../b"), "parent directory"},
		{"NUL", b.AddFile(host, "/a\x00b"), "NUL"},
		{"long", b.AddFile(host, "/"+strings.Repeat("x", 5000)), "too long"},
		{"root", b.AddFile(host, "/"), "is a directory"},
		{"below a file", b.AddFile(host, "/file/x"), "file is not a directory"},
		{"below a link to a file", b.AddFile(host, "/tofile/x"), "file is not a directory"},
		{"over a directory", b.AddFile(host, "/dir"), "directory with files"},
		{"link over a directory", b.AddSymlink("x", "/dir"), "directory with files"},
		{"loop", b.AddFile(host, "/loop1/x"), "too many symbolic links"},
		{"missing", b.AddFile(filepath.Join(dir, "none"), "/x"), "none: no such file"},
		{"directory", b.AddFile(dir, "/x"), "not a regular file"},
		{"FIFO", b.AddFile(fifo, "/x"), "not a regular file"},
		{"device", b.AddFile("/dev/zero", "/x"), "not a regular file"},
		{"4 GiB", b.AddFile(big, "/x"), "over 4 GiB"},
		{"link to nothing", b.AddSymlink("", "/x"), "bad target"},
		{"not a device", b.AddDevice("/x", 0o644, 1, 1), "not that of a device"},
		{"tree of a file", b.AddTree(host, "/x"), "not a directory"},
		{"tree, relative", b.AddTree(dir, "x"), "not absolute"},
	} {
		if c.err == nil || !strings.Contains(c.err.Error(), c.want) || strings.Contains(c.err.Error(), "\n") {
			t.Errorf("%s: error %v, want one line with %q", c.name, c.err, c.want)
		}
	}
	if b.Has("/x") {
		t.Error("a refused file is in the image")
	}
}

func TestAddTree(t *testing.T) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	write(t, filepath.Join(root, "a/f"), []byte("f"), 0o755)
	write(t, filepath.Join(dir, "outside"), []byte("out"), 0o644)
	must(t,
		os.Mkdir(filepath.Join(root, "empty"), 0o700),
		os.Symlink("a/f", filepath.Join(root, "in")),
		os.Symlink("../outside", filepath.Join(root, "out")),
		os.Symlink(filepath.Join(dir, "outside"), filepath.Join(root, "abs")),
		os.Symlink("..", filepath.Join(root, "up")),
		os.Symlink("nothing", filepath.Join(root, "dangling")),
		os.Symlink("self", filepath.Join(root, "self")),
		unix.Mkfifo(filepath.Join(root, "fifo"), 0o600),
		os.Symlink(root, filepath.Join(dir, "link")),
	)
	b := New()
	must(t, b.AddTree(filepath.Join(dir, "link"), "/g"))
	r := records(t, archive(t, b))
	want := map[string]string{
		"g": "dir", "g/a": "dir", "g/empty": "dir", "g/a/f": "f", "g/in": "-> a/f", "g/out": "out", "g/abs": "out",
		"g/up": "-> ..", "g/dangling": "-> nothing", "g/self": "-> self", "g/fifo": "fifo",
	}
	for name, rec := range r {
		got := body(t, rec)
		switch rec.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			got = "dir"
		case unix.S_IFLNK:
			got = "-> " + got
		case unix.S_IFIFO:
			got = "fifo"
		}
		if got != want[name] {
			t.Errorf("%s: %q, want %q", name, got, want[name])
		}
		delete(want, name)
	}
	for name := range want {
		t.Errorf("%s is missing", name)
	}
}

func TestHardLinks(t *testing.T) {
	dir := t.TempDir()
	one := write(t, filepath.Join(dir, "t/one"), []byte("many names"), 0o755)
	must(t, os.Link(one, filepath.Join(dir, "t/two")), os.Link(one, filepath.Join(dir, "alone")))
	for _, n := range []string{"e1", "e2"} { // empty ones have no body to share
		write(t, filepath.Join(dir, "t", n), nil, 0o644)
	}
	b := New()
	must(t, b.AddTree(filepath.Join(dir, "t"), "/t"))
	img := archive(t, b)
	if n := bytes.Count(img, []byte("many names")); n != 1 {
		t.Errorf("body is there %d times", n)
	}
	r := records(t, img)
	if a, z := r["t/one"], r["t/two"]; a.Ino != z.Ino || a.NLink != 2 || z.NLink != 2 || a.FileSize != 0 || body(t, z) != "many names" {
		t.Errorf("links %+v and %+v", a.Info, z.Info)
	}
	if a, z := r["t/e1"], r["t/e2"]; a.Ino == z.Ino || a.NLink != 1 {
		t.Errorf("empty files %+v and %+v", a.Info, z.Info)
	}
	// One name alone in the image is an ordinary file.
	b = New()
	must(t, b.AddFile(filepath.Join(dir, "alone"), "/alone"))
	if a := records(t, archive(t, b))["alone"]; a.NLink != 1 || body(t, a) != "many names" {
		t.Errorf("single name %+v", a.Info)
	}
}

// Any tree comes back as it was put in, and inode numbers are distinct.
func TestRoundTripProperty(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(rt *rapid.T) {
		b := New()
		want := map[string]string{}
		name := rapid.StringMatching(`[a-c]{1,2}`)
		for i := range rapid.IntRange(0, 12).Draw(rt, "files") {
			p := "/" + strings.Join(rapid.SliceOfN(name, 1, 3).Draw(rt, "path"), "/")
			data := rapid.SliceOfN(rapid.Byte(), 0, 9).Draw(rt, "data")
			var err error
			switch rapid.IntRange(0, 2).Draw(rt, "kind") {
			case 0:
				err = b.AddBytes(data, p, 0o644)
			case 1:
				h := filepath.Join(dir, fmt.Sprint(i))
				if err = os.WriteFile(h, data, 0o644); err == nil {
					err = b.AddFile(h, p)
				}
			case 2:
				data = []byte("target")
				err = b.AddSymlink("target", p)
			}
			if err == nil {
				want[resolve(b, p)] = string(data)
			}
		}
		r := records(rt, archive(rt, b))
		inos := map[uint64]bool{}
		for _, rec := range r {
			if inos[rec.Ino] {
				rt.Fatalf("inode %d twice", rec.Ino)
			}
			inos[rec.Ino] = true
		}
		for p, data := range want {
			if rec, ok := r[p]; !ok || body(rt, rec) != data {
				rt.Fatalf("%s: have %v, want %q", p, ok, data)
			}
		}
		if len(r) != len(b.Entries()) {
			rt.Fatalf("%d records for %d entries", len(r), len(b.Entries()))
		}
	})
}

// resolve returns the name in the archive that a path with links in its
// parents stands for. All links here lead to "target" beside them.
func resolve(b *Builder, p string) string {
	parts := split(p)
	at := ""
	for i, name := range parts {
		next := strings.TrimPrefix(at+"/"+name, "/")
		if n := b.at("/" + next); i < len(parts)-1 && n != nil && n.isLink() {
			next = strings.TrimPrefix(at+"/target", "/")
		}
		at = next
	}
	return at
}

// memory records what is loaded.
type memory struct {
	base guest.GPA
	b    []byte
}

func (m *memory) WriteAt(p []byte, a guest.GPA) error {
	copy(m.b[a-m.base:], p)
	return nil
}

func (m *memory) Load(a guest.GPA, f *os.File, off int64, n uint64) error {
	_, err := f.ReadAt(m.b[a-m.base:][:n], off)
	return err
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	b := New()
	must(t,
		b.AddFile(write(t, filepath.Join(dir, "f"), bytes.Repeat([]byte("file"), 5000), 0o644), "/f"),
		b.AddBytes(bytes.Repeat([]byte("data"), copyBelow), "/large", 0o644),
		b.AddBytes([]byte("x"), "/small", 0o644),
	)
	img := archive(t, b)
	im, err := b.Build()
	must(t, err)
	m := &memory{base: 0x1000, b: make([]byte, len(img))}
	must(t, im.Load(m, m.base))
	if !bytes.Equal(m.b, img) {
		t.Error("Load and WriteTo differ")
	}
	// The same into real guest memory.
	size := uint64(len(img)+guest.PageSize-1) &^ (guest.PageSize - 1)
	mem, err := guest.New(guest.Region{Base: 0x1000, Size: size})
	must(t, err)
	defer mem.Close()
	must(t, im.Load(mem, 0x1000))
	got := make([]byte, len(img))
	must(t, mem.ReadAt(got, 0x1000))
	if !bytes.Equal(got, img) {
		t.Error("guest RAM differs")
	}
	if err := im.Load(mem, 1<<64-1); !errors.Is(err, guest.ErrRange) {
		t.Errorf("load at the end of the address space: %v", err)
	}
	if err := im.Load(mem, 0x2000); !errors.Is(err, guest.ErrRange) {
		t.Errorf("an image larger than RAM: %v", err)
	}
}

func TestFileChanges(t *testing.T) {
	dir := t.TempDir()
	for name, change := range map[string]func(p string) error{
		"shrinks":       func(p string) error { return os.Truncate(p, 3) },
		"grows":         func(p string) error { return os.Truncate(p, 300) },
		"goes":          os.Remove,
		"becomes a dir": func(p string) error { return errors.Join(os.Remove(p), os.Mkdir(p, 0o755)) },
	} {
		p := write(t, filepath.Join(dir, "f"), []byte("0123456789"), 0o644)
		b := New()
		must(t, b.AddFile(p, "/f"))
		im, err := b.Build()
		must(t, err, change(p))
		_, werr := im.WriteTo(io.Discard)
		lerr := im.Load(&memory{b: make([]byte, im.Size)}, 0)
		for _, err := range []error{werr, lerr} {
			if err == nil || !strings.Contains(err.Error(), p) {
				t.Errorf("%s: error %v", name, err)
			}
		}
		must(t, os.RemoveAll(p))
	}
}

func TestWriteTo_Fails(t *testing.T) {
	b := New()
	must(t, b.AddFile(write(t, filepath.Join(t.TempDir(), "f"), make([]byte, 1<<20), 0o644), "/f"))
	im, err := b.Build()
	must(t, err)
	f, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	must(t, err)
	defer f.Close()
	if _, err := im.WriteTo(f); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("error %v", err)
	}
}

func TestParseFileSpec(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	write(t, "f", nil, 0o644)
	write(t, "with:colon", nil, 0o644)
	write(t, "d/x", nil, 0o644)
	for _, c := range []struct {
		in          string
		host, guest string
		err         string
	}{
		{"f", "f", dir + "/f", ""},
		{"./d", "./d", dir + "/d", ""},
		{"/abs/file", "/abs/file", "/abs/file", ""},
		{"f:/g", "f", "/g", ""},
		{"f:/g/", "f", "/g/f", ""},
		{"d:/g/", "d", "/g", ""},
		{"f:/", "f", "/f", ""},
		{"with:colon", "with:colon", dir + "/with:colon", ""},
		{"with:colon:/g", "with:colon", "/g", ""},
		{"f:rel", "", "", "not absolute"},
		{"f:", "", "", "not absolute"},
		{":/g", "", "", "no host path"},
		{"", "", "", "empty"},
	} {
		got, err := ParseFileSpec(c.in)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: error %v, want %q", c.in, err, c.err)
			}
			continue
		}
		if err != nil || got.Host != c.host || got.Guest != c.guest {
			t.Errorf("%q: %+v, %v", c.in, got, err)
		}
	}
}

func TestBase(t *testing.T) {
	exe := write(t, filepath.Join(t.TempDir(), "exe"), append([]byte("#!/bin/init-itself\n"), "x"...), 0o700)
	b := New()
	must(t, b.AddBytes([]byte("interpreter"), "/bin/init-itself", 0o755))
	must(t, Base(b, exe, []string{"sh", "mount"}))
	r := records(t, archive(t, b))
	for name, want := range map[string]string{
		"init": "100755", "bin/sh": "120777", "bin/mount": "120777", "dev/console": "20600", "dev/null": "20666",
		"proc": "40555", "sys": "40555", "tmp": "41777", "root": "40700", "run": "40755", "lib64": "40755",
		"etc/passwd": "100644", "etc/group": "100644", "etc/hosts": "100644", "etc/resolv.conf": "100644",
	} {
		if got := fmt.Sprintf("%o", r[name].Mode); got != want {
			t.Errorf("%s: mode %s, want %s", name, got, want)
		}
	}
	if c := r["dev/console"]; c.Rmajor != 5 || c.Rminor != 1 {
		t.Errorf("console is %d:%d", c.Rmajor, c.Rminor)
	}
	if body(t, r["bin/sh"]) != "/init" {
		t.Errorf("sh leads to %q", body(t, r["bin/sh"]))
	}
	if err := Base(New(), filepath.Join(t.TempDir(), "none"), nil); err == nil || !strings.Contains(err.Error(), "init:") {
		t.Errorf("no executable: %v", err)
	}
}
