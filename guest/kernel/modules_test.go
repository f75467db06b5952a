package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// moduleTree makes a kernel with a module directory of these files (below
// kernel/, by name and content) and returns it. Without files it returns the
// kernel that is there, as another process would find it.
func moduleTree(t testing.TB, dir string, files map[string][]byte) *Kernel {
	t.Helper()
	image := filepath.Join(dir, "boot/vmlinuz-"+testRelease)
	if files != nil {
		write(t, image, bzImage(testRelease))
	}
	for name, data := range files {
		write(t, filepath.Join(dir, "lib/modules", testRelease, name), data)
	}
	k, err := Resolve(t.Context(), image, Options{CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func names(mods []Module) []string {
	var n []string
	for _, m := range mods {
		s := m.Name
		if m.Soft {
			s += "?"
		}
		n = append(n, s)
	}
	return n
}

var sampleModules = map[string][]byte{
	"modules.builtin":         []byte("kernel/fs/built-in-fs.ko\n"),
	"modules.builtin.modinfo": []byte("built_in_fs.alias=fs-builtin\x00"),
	"kernel/a.ko":             ko("depends=b-c,built-in-fs"),
	"kernel/b-c.ko":           ko("depends=", "alias=fs-bc", "alias=pci:v*"),
	"kernel/crc1.ko":          ko("alias=crc"),
	"kernel/crc2.ko":          ko("alias=crc", "depends=b_c"),
	"kernel/s.ko":             ko("softdep=pre: crc nothere cyc1 post: a"),
	"kernel/cyc1.ko":          ko("depends=cyc2"),
	"kernel/cyc2.ko":          ko("depends=cyc1"),
	"kernel/orphan.ko":        ko("depends=gone"),
	"kernel/softorphan.ko":    ko("softdep=pre: orphan post: softorphan"),
	"kernel/text.ko":          []byte("no ELF at all"),
}

func TestModules(t *testing.T) {
	for _, c := range []struct {
		ask  string
		want string // names in order, or an error text in parentheses
	}{
		{"a", "b_c a"},
		{"b-c", "b_c"},
		{"a b_c a", "b_c a"},
		{"crc2 a", "b_c crc2 a"},
		{"built_in_fs", ""},
		{"", ""},
		{"cyc1", "(module cyc1: kernel 6.9.1+test: dependency cycle through cyc1)"},
		{"orphan", "(module orphan: kernel 6.9.1+test: orphan needs gone: no such module)"},
	} {
		// Without text.ko nothing forces a look at every module.
		dir := t.TempDir()
		k := moduleTree(t, dir, sampleModules)
		mods, err := k.Modules(strings.Fields(c.ask)...)
		got := strings.Join(names(mods), " ")
		if err != nil {
			got = "(" + err.Error() + ")"
		}
		if got != c.want {
			t.Errorf("Modules(%s) = %s, want %s", c.ask, got, c.want)
		}
	}
}

func TestModules_Aliases(t *testing.T) {
	files := map[string][]byte{}
	for name, b := range sampleModules {
		if name != "kernel/text.ko" {
			files[name] = b
		}
	}
	k := moduleTree(t, t.TempDir(), files)
	for _, c := range []struct{ ask, want string }{
		{"fs-bc", "b_c"},
		{"fs_builtin", ""},
		{"crc", "crc1? b_c? crc2?"},
		{"s", "crc1? b_c? crc2? s a?"},
		{"s a", "crc1? b_c crc2? s a"},
		{"softorphan", "softorphan"},
		{"nosuch", "(module nosuch: kernel 6.9.1+test: no such module)"},
		{"pci:v*", "(module pci:v*: kernel 6.9.1+test: no such module)"},
	} {
		mods, err := k.Modules(strings.Fields(c.ask)...)
		got := strings.Join(names(mods), " ")
		if err != nil {
			got = "(" + err.Error() + ")"
		}
		if got != c.want {
			t.Errorf("Modules(%s) = %s, want %s", c.ask, got, c.want)
		}
	}
	if !k.BuiltIn("built-in-fs") || !k.BuiltIn("fs-builtin") || k.BuiltIn("a") || k.BuiltIn("nosuch") {
		t.Error("BuiltIn is wrong")
	}
	_, err := k.Modules("nosuch")
	if !errors.Is(err, ErrNoModule) {
		t.Errorf("error %v is not ErrNoModule", err)
	}
}

// With depmod's files no module is opened.
func TestModules_Depmod(t *testing.T) {
	junk := []byte("not looked into")
	k := moduleTree(t, t.TempDir(), map[string][]byte{
		"modules.dep":     []byte("kernel/a.ko: kernel/b.ko kernel/c.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko:\nkernel/soft.ko:\n"),
		"modules.alias":   []byte("alias fs-a a\n"),
		"modules.softdep": []byte("softdep b pre: soft\n"),
		"kernel/a.ko":     junk, "kernel/b.ko": junk, "kernel/c.ko": junk, "kernel/soft.ko": junk,
	})
	mods, err := k.Modules("fs-a")
	if err != nil || strings.Join(names(mods), " ") != "soft? c b a" {
		t.Errorf("%v, %v", names(mods), err)
	}
	if mods[0].Path != mods[0].Source || mods[0].Size != int64(len(junk)) {
		t.Errorf("module %+v", mods[0])
	}
}

func TestModules_DepmodBinaryOnly(t *testing.T) {
	k := moduleTree(t, t.TempDir(), map[string][]byte{
		"modules.dep.bin": depBinFile(map[string]string{"a": "kernel/a.ko: kernel/b.ko", "b": "kernel/b.ko:"}),
		"kernel/a.ko":     ko(), "kernel/b.ko": ko(),
	})
	if mods, err := k.Modules("a"); err != nil || strings.Join(names(mods), " ") != "b a" {
		t.Errorf("%v, %v", names(mods), err)
	}
}

func TestModules_Compressed(t *testing.T) {
	for _, ext := range []string{".xz", ".zst", ".gz"} {
		dir := t.TempDir()
		a, b := ko("depends=b"), ko("license=GPL")
		k := moduleTree(t, dir, map[string][]byte{
			"modules.order":     []byte("kernel/a.ko\nkernel/b.ko\n"),
			"kernel/a.ko" + ext: compress(t, ext, a),
			"kernel/b.ko" + ext: compress(t, ext, b),
		})
		mods, err := k.Modules("a")
		if err != nil || len(mods) != 2 {
			t.Fatalf("%s: %v, %v", ext, names(mods), err)
		}
		for i, want := range [][]byte{b, a} {
			got, err := os.ReadFile(mods[i].Path)
			if err != nil || string(got) != string(want) || mods[i].Size != int64(len(want)) {
				t.Errorf("%s: module %+v differs (%v)", ext, mods[i], err)
			}
			if !strings.HasSuffix(mods[i].Source, ext) {
				t.Errorf("%s: source %s", ext, mods[i].Source)
			}
		}
		// The index and the copies serve the next run, with the module
		// directory's files unread: damage that keeps size and time is not
		// noticed.
		src := mods[0].Source
		st, err := os.Stat(src)
		if err != nil {
			t.Fatal(err)
		}
		write(t, src, make([]byte, st.Size()))
		if err := os.Chtimes(src, st.ModTime(), st.ModTime()); err != nil {
			t.Fatal(err)
		}
		again := moduleTree(t, dir, nil)
		if mods, err := again.Modules("a"); err != nil || len(mods) != 2 {
			t.Errorf("%s: second run: %v, %v", ext, names(mods), err)
		}
		// A module that was replaced is read anew.
		write(t, src, compress(t, ext, ko("license=GPL", "version=2")))
		newer := moduleTree(t, dir, nil)
		mods, err = newer.Modules("b")
		if err != nil || len(mods) != 1 {
			t.Fatalf("%s: replaced module: %v, %v", ext, names(mods), err)
		}
		if got, err := os.ReadFile(mods[0].Path); err != nil || !strings.Contains(string(got), "version=2") {
			t.Errorf("%s: the old module was served (%v)", ext, err)
		}
	}
}

func TestModules_Damaged(t *testing.T) {
	cut := compress(t, ".xz", ko("license=GPL"))
	for name, c := range map[string]struct {
		file string
		data []byte
	}{
		"text":        {"kernel/a.ko", []byte("no ELF")},
		"empty":       {"kernel/a.ko", nil},
		"cut xz":      {"kernel/a.ko.xz", cut[:len(cut)-12]},
		"cut zst":     {"kernel/a.ko.zst", compress(t, ".zst", ko("license=GPL"))[:30]},
		"xz, no ELF":  {"kernel/a.ko.xz", compress(t, ".xz", []byte("text"))},
		"not present": {"kernel/other.ko", ko()},
	} {
		dir := t.TempDir()
		k := moduleTree(t, dir, map[string][]byte{"modules.order": []byte("kernel/a.ko\n"), c.file: c.data})
		mods, err := k.Modules("a")
		if err == nil || !strings.Contains(err.Error(), "module a: kernel "+testRelease) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, error %v", name, names(mods), err)
		}
		filepath.WalkDir(filepath.Join(dir, "cache"), func(p string, _ os.DirEntry, _ error) error {
			if strings.Contains(filepath.Base(p), ".tmp-") {
				t.Errorf("%s: left behind %s", name, p)
			}
			return nil
		})
	}
}

// A cached index that cannot be read is made anew, not an error.
func TestModules_DamagedIndex(t *testing.T) {
	dir := t.TempDir()
	files := map[string][]byte{"modules.order": []byte("kernel/a.ko\n"), "kernel/a.ko": ko()}
	k := moduleTree(t, dir, files)
	if _, err := k.Modules("a"); err != nil {
		t.Fatal(err)
	}
	index := filepath.Join(k.entry.dir(), indexFile)
	if _, err := os.Stat(index); err != nil {
		t.Fatalf("no index was written: %v", err)
	}
	for _, b := range []string{"", "{", "null", "{\"Stamp\":\"x\",\"Complete\":true}\na {\"Deps\":[\"zz\"]}\n", "{}\na {"} {
		write(t, index, []byte(b))
		if mods, err := moduleTree(t, dir, nil).Modules("a"); err != nil || len(mods) != 1 {
			t.Errorf("index %q: %v, %v", b, names(mods), err)
		}
	}
}

// A build tree has its modules beside their sources, listed by object.
func TestModules_BuildTree(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "arch/x86/boot/bzImage"), bzImage(testRelease))
	write(t, filepath.Join(dir, ".config"), []byte("CONFIG_HYPERV=m\n"))
	write(t, filepath.Join(dir, "modules.order"), []byte("drivers/hv/hv_vmbus.o\ndrivers/hv/hv_utils.o\n"))
	write(t, filepath.Join(dir, "drivers/hv/hv_vmbus.o"), []byte("an object"))
	write(t, filepath.Join(dir, "drivers/hv/hv_vmbus.ko"), ko())
	write(t, filepath.Join(dir, "drivers/hv/hv_utils.ko"), ko("depends=hv_vmbus"))
	k, err := Resolve(t.Context(), dir, Options{CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		t.Fatal(err)
	}
	mods, err := k.Modules("hv_utils")
	if err != nil || strings.Join(names(mods), " ") != "hv_vmbus hv_utils" {
		t.Fatalf("%v, %v", names(mods), err)
	}
	if filepath.Base(mods[0].Path) != "hv_vmbus.ko" || !k.Config.Enabled("HYPERV") {
		t.Errorf("module %+v, config %v", mods[0], k.Config)
	}
}

func TestModules_UpdatesFirst(t *testing.T) {
	k := moduleTree(t, t.TempDir(), map[string][]byte{
		"modules.order":      []byte("kernel/a.ko\n"),
		"kernel/a.ko":        ko(),
		"updates/dkms/a.ko":  ko("version=2"),
		"extra/z.ko.xz":      compress(t, ".xz", ko("depends=a")),
		"extra/leftover.txt": []byte("text"),
	})
	mods, err := k.Modules("z")
	if err != nil || len(mods) != 2 || !strings.HasSuffix(mods[0].Path, "updates/dkms/a.ko") {
		t.Errorf("%+v, %v", mods, err)
	}
}

func TestModules_NoDirectory(t *testing.T) {
	dir := t.TempDir()
	image := write(t, filepath.Join(dir, "bzImage"), bzImage("0.0.1-nowhere"))
	k, err := Resolve(t.Context(), image, Options{CacheDir: filepath.Join(dir, "cache")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.Modules("x"); !errors.Is(err, ErrNoModules) {
		t.Errorf("error %v", err)
	}
	if k.BuiltIn("x") {
		t.Error("x is built into a kernel that nothing is known of")
	}
}

// Whatever the dependencies, every module comes after those it needs, once,
// and nothing comes that is not needed.
func TestModules_OrderProperty(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		n := rapid.IntRange(1, 12).Draw(rt, "modules")
		deps := map[string][]string{}
		s := &moduleSet{files: map[string]string{}, builtin: map[string]string{"builtin": "x"}, aliases: map[string][]string{}, depmod: map[string]depEntry{}}
		var all []string
		for i := range n {
			name := fmt.Sprintf("m%d", i)
			var d []string
			for _, j := range rapid.SliceOfN(rapid.IntRange(0, max(0, i-1)), 0, min(i, 4)).Draw(rt, "deps") {
				d = append(d, fmt.Sprintf("m%d", j)) // only earlier ones: no cycles
			}
			deps[name] = d
			s.files[name] = name + ".ko"
			s.depmod[name] = depEntry{Path: name + ".ko", Deps: append([]string{"builtin"}, d...)}
			all = append(all, name)
		}
		ask := rapid.SliceOfN(rapid.SampledFrom(all), 1, 4).Draw(rt, "ask")
		o := ordering{set: s, state: map[string]visitState{}}
		for _, a := range ask {
			if err := o.request(a); err != nil {
				rt.Fatal(err)
			}
		}
		need := map[string]bool{}
		var closure func(string)
		closure = func(m string) {
			need[m] = true
			for _, d := range deps[m] {
				closure(d)
			}
		}
		for _, a := range ask {
			closure(a)
		}
		if len(o.order) != len(need) {
			rt.Fatalf("order %v for %d modules", o.order, len(need))
		}
		for i, m := range o.order {
			if !need[m] {
				rt.Fatalf("%s is not needed", m)
			}
			for _, d := range deps[m] {
				if !slices.Contains(o.order[:i], d) {
					rt.Fatalf("%s before %s: %v", m, d, o.order)
				}
			}
		}
	})
}

// The index survives its file, whichever modules were asked for in between.
func TestModuleIndex_File(t *testing.T) {
	want := moduleIndex{indexHeader: indexHeader{Stamp: "s\n\"1", Complete: true}}
	for i, name := range []string{"a", "ab", "b"} {
		want.put(name, indexed{Size: int64(i), MTime: 7, moduleInfo: moduleInfo{Deps: []string{"x y", "z\n"}}})
	}
	b, err := want.marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := parseIndex(b)
	if err != nil || got.indexHeader != want.indexHeader {
		t.Fatalf("%+v, %v", got.indexHeader, err)
	}
	if i, ok := got.get("ab"); !ok || i.Size != 1 || len(got.modules) != 1 {
		t.Errorf("ab: %+v, %v; %d modules parsed", i, ok, len(got.modules))
	}
	if _, ok := got.get("c"); ok {
		t.Error("c was found")
	}
	got.put("b", indexed{Size: 9})
	if all := got.all(); len(all) != 3 || all["b"].Size != 9 || all["a"].Deps[1] != "z\n" {
		t.Errorf("all: %+v", all)
	}
	again, err := parseIndex([]byte("{}\na {\nb {\"Size\":3}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if all := again.all(); len(all) != 1 || all["b"].Size != 3 {
		t.Errorf("with a damaged line: %+v", all)
	}
}
