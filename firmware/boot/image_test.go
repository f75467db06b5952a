package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func u64(v uint64) *uint64 { return &v }

func TestDetect(t *testing.T) {
	code := bytes.Repeat([]byte{0xF4}, 64)
	load := testSeg{typ: 1, vaddr: 0x200000, paddr: 0x200000, data: code, memSize: 64}
	pvh := testSeg{typ: 4, data: note("Xen", 18, le.AppendUint32(nil, 0x200010))}
	linux := testSeg{typ: 4, data: note("Linux", 0x101, nil)}
	withMB := load
	withMB.data, withMB.memSize = append(mbHeader(0), code...), 0x100
	for name, tc := range map[string]struct {
		file  []byte
		kind  Kind
		proto Protocol
		pvh   uint32
	}{
		"bzImage":             {defaultBz(testdata(t, "sample.gz")).bytes(), BzImage, LinuxBzImage, 0},
		"bzImage, 4 sectors":  {func() []byte { z := defaultBz(testdata(t, "sample.gz")); z.sects = 0; return z.bytes() }(), BzImage, LinuxBzImage, 0},
		"vmlinux":             {sampleKernel(), ELF64, Linux64, 0x1000100},
		"ELF64 without notes": {buildELF(true, 62, 2, 0x200000, load), ELF64, Linux64, 0},
		"ELF64, PVH only":     {buildELF(true, 62, 2, 0x200000, load, pvh), ELF64, PVH, 0x200010},
		"Linux with PVH":      {buildELF(true, 62, 2, 0x200000, load, pvh, linux), ELF64, Linux64, 0x200010},
		"ELF32, PVH":          {buildELF(false, 3, 2, 0x200000, load, pvh), ELF32, PVH, 0x200010},
		"x32-style ELF32":     {buildELF(false, 62, 2, 0x200000, load, pvh), ELF32, PVH, 0x200010},
		"ELF32, multiboot":    {buildELF(false, 3, 2, 0x200000, withMB), ELF32, Multiboot, 0},
		"ELF64, multiboot":    {buildELF(true, 62, 2, 0x200000, withMB), ELF64, Multiboot, 0},
		"flat multiboot":      {append(mbHeader(mbKludge, 0x200000, 0x200000, 0, 0, 0x200020), code...), Flat, Multiboot, 0},
	} {
		im := open(t, tc.file)
		p, err := im.Default()
		if im.Kind != tc.kind || err != nil || p != tc.proto || im.HasPVH != (tc.pvh != 0) || im.PVHEntry != tc.pvh {
			t.Errorf("%s: %v, %v, PVH %v %#x, %v", name, im.Kind, p, im.HasPVH, im.PVHEntry, err)
		}
	}
	if _, err := open(t, testdata(t, "sample.xz")).Default(); err == nil || !strings.Contains(err.Error(), "compressed (xz)") {
		t.Errorf("compressed file: %v", err)
	}
	if _, err := open(t, buildELF(false, 3, 2, 0x200000, load)).Default(); err == nil {
		t.Error("ELF32 without a way in got a protocol")
	}
	if im := open(t, defaultBz(testdata(t, "sample.gz")).bytes()); im.Setup.KernelVersion != "6.12.0-test (builder) #1" {
		t.Errorf("version %q", im.Setup.KernelVersion)
	}
}

func TestNotAKernel(t *testing.T) {
	at := func(off int, magic string) []byte {
		b := make([]byte, 1024)
		copy(b[off:], magic)
		return b
	}
	code := bytes.Repeat([]byte{0xF4}, 64)
	load := testSeg{typ: 1, vaddr: 0x200000, paddr: 0x200000, data: code, memSize: 64}
	mod := func(f func(*bz)) []byte {
		z := defaultBz(testdata(t, "sample.gz"))
		f(&z)
		return z.bytes()
	}
	patch := func(b []byte, off int, v byte) []byte { b[off] = v; return b }
	many := make([]testSeg, maxSegments+1)
	elf := func(s testSeg) []byte { return buildELF(true, 62, 2, 0x200000, s) }
	for name, tc := range map[string]struct {
		file []byte
		want string
	}{
		"empty":                 {nil, "is empty"},
		"one byte":              {[]byte{0}, "too short"},
		"zeros":                 {make([]byte, 4096), "is not a kernel"},
		"arm64":                 {at(56, "ARM\x64"), "arm64"},
		"arm64 EFI":             {func() []byte { b := at(56, "ARM\x64"); copy(b, "MZ"); return b }(), "arm64"},
		"RISC-V":                {at(56, "RSC\x05"), "RISC-V"},
		"ARM":                   {at(0x24, "\x18\x28\x6f\x01"), "32-bit ARM"},
		"zboot":                 {func() []byte { b := at(4, "zimg"); copy(b, "MZ"); return b }(), "zboot"},
		"deb":                   {at(0, "!<arch>\ndebian-binary"), "Debian package"},
		"rpm":                   {at(0, "\xed\xab\xee\xdb"), "RPM"},
		"initrd":                {at(0, "070701"), "cpio"},
		"EFI program":           {at(0, "MZ"), "EFI or Windows"},
		"script":                {at(0, "#!/bin/sh"), "script"},
		"old Linux":             {mod(func(z *bz) { z.version = 0x0205 }), "2.05"},
		"zImage":                {mod(func(z *bz) { z.loadFlags = 0 }), "zImage"},
		"setup only":            {mod(func(*bz) {})[:5*512], "cut short"},
		"header end too far":    {patch(mod(func(*bz) {}), offJump+1, 0xFF), "damaged setup header"},
		"header end too near":   {patch(mod(func(*bz) {}), offJump+1, 1), "damaged setup header"},
		"cut in setup header":   {mod(func(*bz) {})[:0x240], "cut short within the setup header"},
		"cut in magic":          {mod(func(*bz) {})[:0x206], "cut short within the setup header"},
		"ELF header only":       {elf(load)[:20], "cut short"},
		"ELF64 cut in header":   {elf(load)[:60], "cut short"},
		"ELF of arm64":          {buildELF(true, 183, 2, 0, load), "ELF file for arm64"},
		"ELF of RISC-V":         {buildELF(true, 243, 2, 0, load), "ELF file for RISC-V"},
		"ELF of unknown":        {buildELF(true, 4711, 2, 0, load), "machine-4711"},
		"ELF64 of i386":         {buildELF(true, 3, 2, 0, load), "machine-3"},
		"big-endian ELF":        {patch(elf(load), 5, 2), "big-endian"},
		"ELF class":             {patch(elf(load), 4, 3), "class 3"},
		"object file":           {buildELF(true, 62, 1, 0, load), "module"},
		"core dump":             {buildELF(true, 62, 4, 0, load), "core dump"},
		"ELF type":              {buildELF(true, 62, 9, 0, load), "type 9"},
		"no program headers":    {buildELF(true, 62, 2, 0), "without program headers"},
		"program header size":   {patch(elf(load), 54, 55), "damaged ELF header"},
		"program headers far":   {patch(elf(load), 39, 0x7F), "past its end"},
		"program headers cut":   {elf(load)[:70], "cut short"},
		"too many segments":     {buildELF(true, 62, 2, 0, many...), "65 ELF program headers"},
		"nothing to load":       {elf(testSeg{typ: 6}), "nothing to load"},
		"segment past the end":  {elf(testSeg{typ: 1, paddr: 0x200000, data: code, memSize: 1 << 20, overrideSz: u64(1 << 19)}), "past its"},
		"segment offset wraps":  {elf(testSeg{typ: 1, paddr: 0x200000, data: code, memSize: 64, overrideOff: u64(1<<64 - 32)}), "past its"},
		"file size above":       {elf(testSeg{typ: 1, paddr: 0x200000, data: code, memSize: 63}), "damaged ELF segment"},
		"address wraps":         {elf(testSeg{typ: 1, paddr: 1<<64 - 32, data: code, memSize: 64}), "damaged ELF segment"},
		"segments overlap":      {buildELF(true, 62, 2, 0, load, load), "overlap"},
		"multiboot, video":      {buildELF(false, 3, 2, 0x200000, testSeg{typ: 1, paddr: 0x200000, data: mbHeader(mbVideo), memSize: 64}), "video mode"},
		"multiboot, unknown":    {append(mbHeader(1<<9), make([]byte, 1024)...), "unknown features 0x200"},
		"multiboot, no address": {append(mbHeader(0), make([]byte, 1024)...), "no load addresses"},
		"multiboot, cut":        {mbHeader(mbKludge)[:12], "cut short"},
	} {
		_, err := New(bytes.NewReader(tc.file), int64(len(tc.file)), "vmlinuz")
		oneLine(t, name, err, "vmlinuz: ", tc.want)
	}
}

func TestOpenFile(t *testing.T) {
	dir := t.TempDir()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	_, err = Open(f)
	oneLine(t, "directory", err, dir+": ", "is a directory")

	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	_, err = Open(null)
	oneLine(t, "device", err, os.DevNull+": ", "not a regular file")

	path := filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(path, sampleKernel(), 0o644); err != nil {
		t.Fatal(err)
	}
	k, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	im, err := Open(k)
	if err != nil || im.Kind != ELF64 {
		t.Fatalf("%v, %v", im, err)
	}
	// The file shrinks behind our back.
	if err := os.Truncate(path, 8192); err != nil {
		t.Fatal(err)
	}
	mem, m := machine(t, 64)
	_, err = im.Load(mem, Linux64, Params{Map: m})
	oneLine(t, "shrunk file", err, path+": ", "ends at byte 8192")
}

type failing struct{ after int64 }

var errDisk = errors.New("disk on fire")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if off >= f.after {
		return 0, errDisk
	}
	return len(p), nil
}

func TestReadErrorIsKept(t *testing.T) {
	if _, err := New(failing{0}, 1<<20, "k"); !errors.Is(err, errDisk) {
		t.Errorf("error %v", err)
	}
}

// TestNotesDamaged: notes whose lengths lie are passed over.
func TestNotesDamaged(t *testing.T) {
	good := note("Xen", 18, le.AppendUint32(nil, 0x200010))
	for name, notes := range map[string][]byte{
		"name length":      le.AppendUint32(nil, 0xFFFFFFFF),
		"huge name":        append(le.AppendUint32(nil, 0xFFFFFFFC), make([]byte, 20)...),
		"huge description": append(append(le.AppendUint32(nil, 4), 0xFF, 0xFF, 0xFF, 0xFF), make([]byte, 20)...),
		"entry above 4G":   note("Xen", 18, le.AppendUint64(nil, 1<<40)),
		"short entry":      note("Xen", 18, []byte{1, 2}),
		"other name":       note("Zen", 18, le.AppendUint32(nil, 0x200010)),
		"other type":       note("Xen", 17, le.AppendUint32(nil, 0x200010)),
	} {
		im := open(t, buildELF(true, 62, 2, 0x200000,
			testSeg{typ: 1, vaddr: 0x200000, paddr: 0x200000, data: make([]byte, 64), memSize: 64}, testSeg{typ: 4, data: notes}))
		if im.HasPVH {
			t.Errorf("%s: taken as a PVH entry", name)
		}
	}
	two := append(note("GNU", 3, make([]byte, 20)), good...)
	im := open(t, buildELF(true, 62, 2, 0x200000,
		testSeg{typ: 1, vaddr: 0x200000, paddr: 0x200000, data: make([]byte, 64), memSize: 64}, testSeg{typ: 4, data: two}))
	if !im.HasPVH || im.PVHEntry != 0x200010 {
		t.Error("second note was not found")
	}
}

// TestLayoutProperties: whatever is reserved, the map is sorted, does not
// overlap, offers no RAM that does not exist and loses none.
func TestLayoutProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ram := rapid.Uint64Range(MinRAM>>12, 16<<18).Draw(t, "pages") << 12
		var reserved []Entry
		for range rapid.IntRange(0, 6).Draw(t, "n") {
			reserved = append(reserved, Entry{
				Base: gpa(rapid.Uint64Range(0, 9<<30).Draw(t, "base")),
				Size: rapid.Uint64Range(1, 1<<30).Draw(t, "size"), Type: Reserved,
			})
		}
		regions, m, err := Layout(ram, reserved...)
		if err != nil {
			t.Fatal(err)
		}
		var total uint64
		for _, r := range regions {
			total += r.Size
		}
		if total != ram {
			t.Fatalf("regions hold %#x of %#x", total, ram)
		}
		inRAM := func(a gpa) bool {
			for _, r := range regions {
				if a >= r.Base && a < r.End() {
					return true
				}
			}
			return false
		}
		for i, e := range m {
			if e.Size == 0 || i > 0 && m[i-1].End() > e.Base {
				t.Fatalf("entries %v and %v", m[max(0, i-1)], e)
			}
			if e.Type == RAM && (!inRAM(e.Base) || !inRAM(e.End()-1)) {
				t.Fatalf("%v is not RAM", e)
			}
		}
		// Any address is RAM in the map exactly if it is RAM and not reserved.
		probe := gpa(rapid.Uint64Range(0, 20<<30).Draw(t, "probe"))
		want := inRAM(probe) && (probe < ebdaBase || probe >= highMemory)
		for _, r := range reserved {
			want = want && (probe < r.Base || probe >= r.End())
		}
		if got := usable(m, probe, 1); got != want {
			t.Fatalf("%v: usable %v, want %v in %v", probe, got, want, m)
		}
	})
}

func TestLayoutGolden(t *testing.T) {
	regions, m, err := Layout(4<<30, Entry{0x3000000, 0x1000, Reserved})
	if err != nil {
		t.Fatal(err)
	}
	if len(regions) != 2 || regions[0].Size != 3<<30 || regions[1].Base != 4<<30 || regions[1].Size != 1<<30 {
		t.Errorf("regions %v", regions)
	}
	want := []Entry{
		{0, 0x9FC00, RAM}, {0x9FC00, 0x40400, Reserved}, {0xE0000, 0x10000, ACPIData}, {0xF0000, 0x10000, Reserved},
		{0x100000, 0x2F00000, RAM}, {0x3000000, 0x1000, Reserved}, {0x3001000, 3<<30 - 0x3001000, RAM}, {4 << 30, 1 << 30, RAM},
	}
	if len(m) != len(want) {
		t.Fatalf("map %v", m)
	}
	for i := range m {
		if m[i] != want[i] {
			t.Errorf("entry %d: %v, want %v", i, m[i], want[i])
		}
	}
}

func TestLayoutErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		ram      uint64
		reserved []Entry
	}{
		"none":        {0, nil},
		"too little":  {MinRAM - 4096, nil},
		"not pages":   {1<<30 + 1, nil},
		"too much":    {maxRAM + 4096, nil},
		"empty range": {1 << 30, []Entry{{0x200000, 0, Reserved}}},
		"range wraps": {1 << 30, []Entry{{1<<64 - 4096, 8192, Reserved}}},
		"too many":    {1 << 30, manyRanges()},
	} {
		_, _, err := Layout(tc.ram, tc.reserved...)
		oneLine(t, name, err, "", "")
	}
}

func manyRanges() (r []Entry) {
	for i := range 100 {
		r = append(r, Entry{gpa(0x1000000 + i*0x10000), 0x1000, Reserved})
	}
	return r
}
