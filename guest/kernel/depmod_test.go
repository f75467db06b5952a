package kernel

import (
	"encoding/binary"
	"os"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// testdata/depmod was written by depmod of kmod 30 for ten modules of a
// Debian kernel.
func TestParseModulesDep_Golden(t *testing.T) {
	f, err := os.Open("testdata/depmod/modules.dep")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text, err := parseModulesDep(f)
	if err != nil {
		t.Fatal(err)
	}
	if len(text) != 10 {
		t.Errorf("%d modules", len(text))
	}
	want := depEntry{"kernel/drivers/scsi/hv_storvsc.ko", []string{"scsi_transport_fc", "scsi_mod", "scsi_common", "hv_vmbus"}}
	got := text["hv_storvsc"]
	sort.Strings(want.Deps)
	sort.Strings(got.Deps)
	if !reflect.DeepEqual(got, want) {
		t.Errorf("hv_storvsc: %v, want %v", got, want)
	}
	if text["hid_hyperv"].Path != "kernel/drivers/hid/hid-hyperv.ko" {
		t.Errorf("hid_hyperv: %v", text["hid_hyperv"])
	}
	b, err := os.ReadFile("testdata/depmod/modules.dep.bin")
	if err != nil {
		t.Fatal(err)
	}
	bin, err := parseModulesDepBin(b)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range bin {
		sort.Strings(e.Deps)
	}
	for _, e := range text {
		sort.Strings(e.Deps)
	}
	if !reflect.DeepEqual(bin, text) {
		t.Errorf("modules.dep.bin gives\n%v\nmodules.dep gives\n%v", bin, text)
	}
}

func TestParseModulesDep_Refused(t *testing.T) {
	for _, s := range []string{
		"kernel/a.ko kernel/b.ko\n",
		"kernel/a.txt:\n",
		"kernel/a.ko: kernel/readme\n",
		"../a.ko:\n",
		"kernel/../../../a.ko:\n",
		"kernel//a.ko:\n",
		"a.ko: " + strings.Repeat("x", maxLine+1),
	} {
		if d, err := parseModulesDep(strings.NewReader(s)); err == nil {
			t.Errorf("%.40q accepted: %v", s, d)
		}
	}
}

// depBinFile encodes a trie in kmod's format, one character a level.
func depBinFile(lines map[string]string) []byte {
	type node struct {
		value    string
		children map[byte]*node
	}
	root := &node{children: map[byte]*node{}}
	for key, v := range lines {
		n := root
		for i := range len(key) {
			if n.children[key[i]] == nil {
				n.children[key[i]] = &node{children: map[byte]*node{}}
			}
			n = n.children[key[i]]
		}
		n.value = v
	}
	be := binary.BigEndian
	b := be.AppendUint32(be.AppendUint32(nil, depBinMagic), depBinMajor<<16|1)
	b = append(b, 0, 0, 0, 0)
	var put func(n *node) uint32
	put = func(n *node) uint32 {
		first, last := byte(255), byte(0)
		for c := range n.children {
			first, last = min(first, c), max(last, c)
		}
		at := map[byte]uint32{}
		for c, child := range n.children {
			at[c] = put(child)
		}
		off := uint32(len(b))
		if len(at) > 0 {
			off |= nodeChildren
			b = append(b, first, last)
			for c := int(first); c <= int(last); c++ {
				b = be.AppendUint32(b, at[byte(c)])
			}
		}
		if n.value != "" {
			off |= nodeValues
			b = be.AppendUint32(b, 1)
			b = be.AppendUint32(b, 0)
			b = append(append(b, n.value...), 0)
		}
		return off
	}
	at := put(root) // moves b
	be.PutUint32(b[8:], at)
	return b
}

func TestParseModulesDepBin_RoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[a-z0-9_]{1,12}`), 1, 20, rapid.ID[string]).Draw(t, "names")
		lines, want := map[string]string{}, map[string]depEntry{}
		for _, n := range names {
			e := depEntry{Path: "kernel/" + n + ".ko"}
			line := e.Path + ":"
			for _, d := range rapid.SliceOfN(rapid.SampledFrom(names), 0, 4).Draw(t, "deps") {
				e.Deps = append(e.Deps, d)
				line += " kernel/" + d + ".ko"
			}
			lines[n], want[n] = line, e
		}
		got, err := parseModulesDepBin(depBinFile(lines))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestParseModulesDepBin_Refused(t *testing.T) {
	be := binary.BigEndian
	head := func(version, root uint32) []byte {
		return be.AppendUint32(be.AppendUint32(be.AppendUint32(nil, depBinMagic), version), root)
	}
	loop := head(2<<16, nodeChildren|12)
	loop = be.AppendUint32(append(loop, 'a', 'a'), nodeChildren|12)
	for name, b := range map[string][]byte{
		"empty":             nil,
		"magic":             make([]byte, 12),
		"version":           head(3<<16, 0),
		"root past the end": head(2<<16, nodeChildren|100),
		"loop":              loop,
		"children backward": append(head(2<<16, nodeChildren|12), 'b', 'a', 0, 0, 0, 0),
		"children cut":      append(head(2<<16, nodeChildren|12), 'a', 'z', 0, 0, 0, 0),
		"endless values":    be.AppendUint32(head(2<<16, nodeValues|12), 1<<32-1),
		"no NUL":            append(head(2<<16, nodePrefix|12), "abc"...),
	} {
		if d, err := parseModulesDepBin(b); err == nil {
			t.Errorf("%s: accepted, %v", name, d)
		}
	}
	if d, err := parseModulesDepBin(head(2<<16, 0)); err != nil || len(d) != 0 {
		t.Errorf("index without modules: %v, %v", d, err)
	}
}

func TestParseOrder(t *testing.T) {
	got, err := parseOrder(strings.NewReader("kernel/a-b.ko\n\nkernel/c.ko.xz\narch/x86/d.o\nkernel/other/a_b.ko\n"))
	want := map[string]string{"a_b": "kernel/a-b.ko", "c": "kernel/c.ko.xz", "d": "arch/x86/d.o"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseOrder(strings.NewReader("../../x.ko\n")); err == nil {
		t.Error("a path out of the directory was accepted")
	}
}

func TestParseAliasesAndSoftdeps(t *testing.T) {
	a, err := parseAliases(strings.NewReader("# comment\nalias fs-zfoo z_foo\nalias pci:v1d* nic\nalias crc32c one\nalias crc32c two-b\n"))
	if err != nil || !reflect.DeepEqual(a, map[string][]string{"fs_zfoo": {"z_foo"}, "crc32c": {"one", "two_b"}}) {
		t.Errorf("aliases %v, %v", a, err)
	}
	s, err := parseSoftdeps(strings.NewReader("# comment\nsoftdep z-foo pre: a b post: c\nsoftdep x\n"))
	if err != nil || len(s) != 1 || !slices.Equal(s["z_foo"].Pre, []string{"a", "b"}) || !slices.Equal(s["z_foo"].Post, []string{"c"}) {
		t.Errorf("softdeps %v, %v", s, err)
	}
}

func FuzzModulesDep(f *testing.F) {
	for _, name := range []string{"modules.dep", "modules.dep.bin"} {
		b, err := os.ReadFile("testdata/depmod/" + name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("kernel/a.ko: kernel/b.ko.xz kernel/c.ko.zst\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		check := func(d map[string]depEntry) {
			for name, e := range d {
				if got, ok := moduleName(e.Path); !ok || got != name || strings.HasPrefix(e.Path, "../") {
					t.Errorf("%q: path %q", name, e.Path)
				}
			}
		}
		if d, err := parseModulesDep(strings.NewReader(string(b))); err == nil {
			check(d)
		}
		if d, err := parseModulesDepBin(b); err == nil {
			check(d)
		}
		parseOrder(strings.NewReader(string(b)))
		parseAliases(strings.NewReader(string(b)))
		parseSoftdeps(strings.NewReader(string(b)))
		parseBuiltinModinfo(b)
	})
}
