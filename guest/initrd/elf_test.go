package initrd

import (
	"debug/elf"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// elfSpec describes a small ELF file with a dynamic section.
type elfSpec struct {
	machine                elf.Machine
	interp                 string
	needed, rpath, runpath []string
}

// makeELF encodes the spec: what debug/elf and ld.so read of a program, and
// nothing that could run.
func makeELF(s elfSpec) []byte {
	le := binary.LittleEndian
	if s.machine == 0 {
		s.machine = elf.EM_X86_64
	}
	strtab := []byte{0}
	add := func(v string) uint64 {
		at := len(strtab)
		strtab = append(append(strtab, v...), 0)
		return uint64(at)
	}
	var dyn []byte
	entry := func(tag elf.DynTag, v uint64) {
		dyn = le.AppendUint64(le.AppendUint64(dyn, uint64(tag)), v)
	}
	for _, n := range s.needed {
		entry(elf.DT_NEEDED, add(n))
	}
	for _, n := range s.rpath {
		entry(elf.DT_RPATH, add(n))
	}
	for _, n := range s.runpath {
		entry(elf.DT_RUNPATH, add(n))
	}
	entry(elf.DT_NULL, 0)
	shstr := []byte("\x00.dynamic\x00.dynstr\x00.shstrtab\x00")

	b := make([]byte, 64+56)
	place := func(p []byte) uint64 {
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		at := len(b)
		b = append(b, p...)
		return uint64(at)
	}
	interp := append([]byte(s.interp), 0)
	interpAt, dynAt, strAt, shstrAt := place(interp), place(dyn), place(strtab), place(shstr)
	sections := make([]byte, 64)
	section := func(name, typ, link uint32, off, size uint64) {
		h := make([]byte, 64)
		le.PutUint32(h, name)
		le.PutUint32(h[4:], typ)
		le.PutUint64(h[24:], off)
		le.PutUint64(h[32:], size)
		le.PutUint32(h[40:], link)
		sections = append(sections, h...)
	}
	section(1, uint32(elf.SHT_DYNAMIC), 2, dynAt, uint64(len(dyn)))
	section(10, uint32(elf.SHT_STRTAB), 0, strAt, uint64(len(strtab)))
	section(18, uint32(elf.SHT_STRTAB), 0, shstrAt, uint64(len(shstr)))
	shAt := place(sections)

	copy(b, "\x7fELF\x02\x01\x01")
	le.PutUint16(b[16:], uint16(elf.ET_DYN))
	le.PutUint16(b[18:], uint16(s.machine))
	le.PutUint32(b[20:], 1)
	le.PutUint64(b[32:], 64)
	le.PutUint64(b[40:], shAt)
	le.PutUint16(b[52:], 64)
	le.PutUint16(b[54:], 56)
	if s.interp != "" {
		le.PutUint16(b[56:], 1)
	}
	le.PutUint16(b[58:], 64)
	le.PutUint16(b[60:], 4)
	le.PutUint16(b[62:], 3)
	p := b[64:]
	le.PutUint32(p, uint32(elf.PT_INTERP))
	le.PutUint64(p[8:], interpAt)
	le.PutUint64(p[32:], uint64(len(interp)))
	return b
}

// builder returns a Builder that knows no directories but those given, so
// that tests do not depend on the host's libraries.
func builder(defaults ...string) *Builder {
	b := New()
	b.LibraryPath = ""
	b.search = &librarySearch{defaults: defaults}
	return b
}

func paths(b *Builder) []string {
	var list []string
	for _, e := range b.Entries() {
		if e.Target != "" {
			list = append(list, e.Path+"->"+e.Target)
		} else if e.Host != "" {
			list = append(list, e.Path)
		}
	}
	return list
}

func TestAddELF_Search(t *testing.T) {
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	lib := func(p string, s elfSpec) { write(t, at(p), makeELF(s), 0o644) }
	write(t, at("sys/ld.so"), makeELF(elfSpec{}), 0o755)
	ld := at("sys/ld.so")
	lib("sys/libc.so.6", elfSpec{})
	lib("sys/liba.so", elfSpec{needed: []string{"libc.so.6", "libb.so"}})
	lib("sys/libb.so", elfSpec{needed: []string{"libc.so.6", "liba.so"}}) // a cycle
	lib("run/libr.so", elfSpec{})
	lib("rpath/libr.so", elfSpec{})
	lib("rpath/libdeep.so", elfSpec{})
	lib("sys/libneeds.so", elfSpec{needed: []string{"libdeep.so"}})
	lib("sys/librunpath.so", elfSpec{needed: []string{"libdeep.so"}, runpath: []string{at("none")}})
	lib("env/libenv.so", elfSpec{})
	lib("wrong/libr.so", elfSpec{machine: elf.EM_AARCH64})
	write(t, at("wrong/libenv.so"), []byte("/* GNU ld script */"), 0o644)
	lib("opt/lib/libo.so", elfSpec{})
	lib("sys/libreal.so.1.2", elfSpec{})
	if err := os.Symlink("libreal.so.1.2", at("sys/libreal.so.1")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		spec elfSpec
		env  string
		want []string // relative to dir, besides /prog, sys/ld.so and sys/libc.so.6
		err  string
	}{
		{"static", elfSpec{}, "", nil, ""},
		{"default directory, transitive, cycle", elfSpec{interp: ld, needed: []string{"liba.so"}}, "", []string{"sys/liba.so", "sys/libb.so"}, ""},
		{"RUNPATH", elfSpec{interp: ld, needed: []string{"libr.so"}, runpath: []string{at("none") + ":" + at("run")}}, "", []string{"run/libr.so"}, ""},
		{"RPATH", elfSpec{interp: ld, needed: []string{"libr.so"}, rpath: []string{at("rpath")}}, "", []string{"rpath/libr.so"}, ""},
		{"RUNPATH rules out RPATH", elfSpec{interp: ld, needed: []string{"libr.so"}, rpath: []string{at("rpath")}, runpath: []string{at("run")}}, "", []string{"run/libr.so"}, ""},
		{"RPATH of the program helps its libraries", elfSpec{interp: ld, needed: []string{"libneeds.so"}, rpath: []string{at("rpath")}}, "", []string{"rpath/libdeep.so", "sys/libneeds.so"}, ""},
		{"RUNPATH of the program does not", elfSpec{interp: ld, needed: []string{"libneeds.so"}, runpath: []string{at("rpath")}}, "", nil, "sys/libneeds.so: needs libdeep.so: no such library"},
		{"a library's RUNPATH ends RPATH", elfSpec{interp: ld, needed: []string{"librunpath.so"}, rpath: []string{at("rpath")}}, "", nil, "needs libdeep.so"},
		{"RPATH before LD_LIBRARY_PATH", elfSpec{interp: ld, needed: []string{"libr.so"}, rpath: []string{at("rpath")}}, at("run"), []string{"rpath/libr.so"}, ""},
		{"LD_LIBRARY_PATH before RUNPATH", elfSpec{interp: ld, needed: []string{"libr.so"}, runpath: []string{at("run")}}, at("rpath"), []string{"rpath/libr.so", "sys/libr.so->rpath/libr.so"}, ""},
		{"LD_LIBRARY_PATH is not the guest's", elfSpec{interp: ld, needed: []string{"libenv.so", "libc.so.6"}}, ":" + at("wrong") + ":" + at("env"), []string{"env/libenv.so", "sys/libenv.so->env/libenv.so"}, ""},
		{"other machine passed over", elfSpec{interp: ld, needed: []string{"libr.so"}, runpath: []string{at("wrong") + ":" + at("run")}}, "", []string{"run/libr.so"}, ""},
		{"path", elfSpec{interp: ld, needed: []string{at("run/libr.so")}}, "", []string{"run/libr.so"}, ""},
		{"link to the real file", elfSpec{interp: ld, needed: []string{"libreal.so.1"}}, "", []string{"sys/libreal.so.1"}, ""},
		{"missing", elfSpec{interp: ld, needed: []string{"libnone.so.3"}}, "", nil, "prog: needs libnone.so.3: no such library on this host"},
		{"no interpreter", elfSpec{interp: at("none/ld.so")}, "", nil, "program interpreter"},
		{"relative interpreter", elfSpec{interp: "ld.so"}, "", nil, "not an absolute path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := builder(at("sys"))
			b.LibraryPath = c.env
			err := b.AddELF(write(t, at("prog"), makeELF(c.spec), 0o755), "/prog")
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "\n") {
					t.Fatalf("error %v, want one line with %q", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range paths(b) {
				p = strings.ReplaceAll(p, dir+"/", "")
				if p != "/prog" && p != "sys/ld.so" && p != "sys/libc.so.6" {
					got = append(got, p)
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("image has %v, want %v", got, c.want)
			}
		})
	}
}

// $ORIGIN is the directory of the program: in the guest perhaps another one.
func TestAddELF_Origin(t *testing.T) {
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	write(t, at("opt/lib/libo.so"), makeELF(elfSpec{needed: []string{"libp.so"}, runpath: []string{"${ORIGIN}/sub"}}), 0o644)
	write(t, at("opt/lib/sub/libp.so"), makeELF(elfSpec{}), 0o644)
	prog := write(t, at("opt/bin/prog"), makeELF(elfSpec{needed: []string{"libo.so"}, runpath: []string{"$ORIGIN/../lib"}}), 0o755)
	if err := os.Symlink("opt/bin/prog", at("link")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		host, guest string
		want        []string
	}{
		{prog, prog, []string{at("opt/bin/prog"), at("opt/lib/libo.so"), at("opt/lib/sub/libp.so")}},
		{prog, "/bin/p", []string{"/bin/p", "/lib/libo.so", "/lib/sub/libp.so"}},
		{at("link"), "/a/b/p", []string{"/a/b/p", "/a/lib/libo.so", "/a/lib/sub/libp.so"}},
	} {
		b := builder()
		if err := b.AddELF(c.host, c.guest); err != nil {
			t.Error(err)
		} else if got := paths(b); !slices.Equal(got, c.want) {
			t.Errorf("%s at %s: %v, want %v", c.host, c.guest, got, c.want)
		}
	}
	// Two programs, one library: the second path is a link to the first.
	b := builder()
	must(t, b.AddELF(prog, "/bin/p"), b.AddELF(prog, "/x/bin/p"))
	if got := paths(b); !slices.Contains(got, "/x/lib/libo.so->/lib/libo.so") {
		t.Errorf("%v", got)
	}
}

func TestAddELF_Scripts(t *testing.T) {
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	sh := write(t, at("sh"), makeELF(elfSpec{}), 0o755)
	env := write(t, at("env"), makeELF(elfSpec{}), 0o755)
	tool := write(t, at("tools/tool"), []byte("#!"+sh+"\n"), 0o755)
	t.Setenv("PATH", at("tools"))
	for _, c := range []struct {
		name, text string
		want       []string
		err        string
	}{
		{"plain", "#!" + sh + "\nx\n", []string{sh}, ""},
		{"blanks and argument", "#! \t" + sh + "  -e x\n", []string{sh}, ""},
		{"no newline", "#!" + sh, []string{sh}, ""},
		{"env", "#!" + env + " tool\n", []string{env, sh, tool}, ""},
		{"env with options", "#!" + env + " -S A=b tool -x\n", []string{env, sh, tool}, ""},
		{"env without a name", "#!" + env + "\n", []string{env}, ""},
		{"env, not there", "#!" + env + " nosuch\n", nil, "interpreter nosuch: not found in PATH"},
		{"no interpreter", "#!\n", nil, "names no interpreter"},
		{"relative", "#!sh\n", nil, "names no interpreter"},
		{"missing", "#!" + at("none") + "\n", nil, "interpreter"},
		{"itself", "#!" + at("script") + "\n", []string{}, "scripts interpret scripts"},
		{"neither", "plain text\n", nil, "neither an ELF file nor a script"},
		{"empty", "", nil, "neither an ELF file nor a script"},
	} {
		b := builder()
		err := b.AddELF(write(t, at("script"), []byte(c.text), 0o755), "/script")
		if c.name == "itself" && err == nil {
			continue // it is in the image already when it is asked for again
		}
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%s: error %v, want one line with %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got := slices.DeleteFunc(paths(b), func(p string) bool { return p == "/script" })
		slices.Sort(got)
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

func TestAddSpec(t *testing.T) {
	dir := t.TempDir()
	at := func(p string) string { return filepath.Join(dir, p) }
	sh := write(t, at("sh"), makeELF(elfSpec{}), 0o755)
	write(t, at("d/x"), []byte("x"), 0o644)
	write(t, at("script"), []byte("#!"+sh+"\n"), 0o755)
	write(t, at("data.sh"), []byte("#!/none/none\n"), 0o644)
	write(t, at("arm"), makeELF(elfSpec{machine: elf.EM_ARM, interp: "/none"}), 0o755)
	write(t, at("cut"), makeELF(elfSpec{})[:70], 0o755)
	for _, c := range []struct {
		spec string
		want []string
		err  string
	}{
		{at("d") + ":/g", []string{"/g/x"}, ""},
		{at("script") + ":/s", []string{"/s", sh}, ""},
		{at("data.sh") + ":/s", []string{"/s"}, ""},
		{at("arm") + ":/s", []string{"/s"}, ""},
		{at("cut") + ":/s", []string{"/s"}, ""},
		{at("none") + ":/s", nil, "none: no such file"},
		{"/dev/null:/s", nil, "not a regular file"},
	} {
		spec, err := ParseFileSpec(c.spec)
		must(t, err)
		b := builder()
		err = b.AddSpec(spec)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: error %v", c.spec, err)
			}
			continue
		}
		if got := paths(b); err != nil || !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, %v, want %v", c.spec, got, err, c.want)
		}
	}
}

// The libraries of this host's own programs are those that ldd(1) finds.
func TestAddELF_HostPrograms(t *testing.T) {
	tested := 0
	for _, prog := range []string{"/bin/ls", "/bin/bash", "/usr/bin/gdb", "/usr/bin/python3", "/usr/bin/git"} {
		if kind, err := programKind(prog); err != nil || kind != elfProgram {
			continue // not installed
		}
		out, err := exec.Command("ldd", prog).Output()
		if err != nil {
			continue // static, or no ldd here
		}
		b := New()
		if err := b.AddELF(prog, prog); err != nil {
			t.Errorf("%s: %v", prog, err)
			continue
		}
		tested++
		have := map[string]bool{}
		for _, e := range b.Entries() {
			if e.Host != "" {
				real, err := filepath.EvalSymlinks(e.Path) // both sides may differ by /usr
				if err != nil {
					t.Error(err)
				}
				have[real] = true
			}
		}
		for _, line := range strings.Split(string(out), "\n") {
			f := strings.Fields(line)
			if len(f) < 3 || f[1] != "=>" || !filepath.IsAbs(f[2]) {
				continue
			}
			real, err := filepath.EvalSymlinks(f[2])
			if err != nil {
				t.Error(err)
			}
			if !have[real] {
				t.Errorf("%s: %s (%s) is not in the image", prog, f[0], f[2])
			}
		}
	}
	if _, err := exec.LookPath("ldd"); err == nil && tested == 0 {
		t.Error("no dynamic program on this host was found")
	}
}

func TestParseCache(t *testing.T) {
	le := binary.LittleEndian
	type lib struct {
		name, path string
		hwcap      uint64
	}
	cache := func(libs ...lib) []byte {
		b := make([]byte, 48+24*len(libs))
		copy(b, "glibc-ld.so.cache1.1")
		le.PutUint32(b[20:], uint32(len(libs)))
		for i, l := range libs {
			e := b[48+24*i:]
			le.PutUint32(e[4:], uint32(len(b)))
			le.PutUint32(e[8:], uint32(len(b)+len(l.name)+1))
			le.PutUint64(e[16:], l.hwcap)
			b = append(b, l.name+"\x00"+l.path+"\x00"...)
		}
		return b
	}
	good := cache(lib{"liba.so", "/x/liba.so", 0}, lib{"liba.so", "/y/liba.so", 0}, lib{"libh.so", "/h/libh.so", 1}, lib{"librel.so", "rel", 0})
	old := append([]byte("ld.so-1.7.0\x00\x01\x00\x00\x00"), make([]byte, 12+4)...)
	for name, b := range map[string][]byte{"new": good, "behind the old format": append(old, good...)} {
		m := parseCache(b)
		if len(m) != 1 || !slices.Equal(m["liba.so"], []string{"/x/liba.so", "/y/liba.so"}) {
			t.Errorf("%s: %v", name, m)
		}
	}
	many := slices.Clone(good)
	le.PutUint32(many[20:], 1<<32-1)
	for name, b := range map[string][]byte{"empty": nil, "short": good[:40], "other": make([]byte, 100), "too many": many, "old cut": old[:20], "old with a huge count": append([]byte("ld.so-1.7.0\x00\xff\xff\xff\xff"), good...)} {
		if m := parseCache(b); len(m) != 0 {
			t.Errorf("%s: %v", name, m)
		}
	}
}

func FuzzLdCache(f *testing.F) {
	f.Add([]byte("glibc-ld.so.cache1.1"))
	if b, err := readSmall("/etc/ld.so.cache", 1<<20); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for name, paths := range parseCache(b) {
			for _, p := range paths {
				if name == "" || !filepath.IsAbs(p) {
					t.Errorf("%q: %q", name, p)
				}
			}
		}
	})
}

func TestReadLdConf(t *testing.T) {
	dir := t.TempDir()
	conf := write(t, filepath.Join(dir, "ld.so.conf"), []byte("# comment\ninclude conf.d/*.conf\n/first # why\nhwcap 0 nosegneg\n/second=libc5 relative\ninclude "+dir+"/ld.so.conf\n"), 0o644)
	write(t, filepath.Join(dir, "conf.d/a.conf"), []byte("/a\n"), 0o644)
	write(t, filepath.Join(dir, "conf.d/b.conf"), []byte("/b /c\n"), 0o644)
	got := readLdConf(conf, 0)
	if len(got) != 2 || got[0] != "/first" || got[1] != "/second" {
		t.Errorf("without includes: %v", got)
	}
	got = readLdConf(conf, 1) // it includes itself: the depth ends that
	if want := []string{"/a", "/b", "/c", "/first", "/second", "/first", "/second"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
