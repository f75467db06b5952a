package boot

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hvpost/hvpost/guest"
)

type gpa = guest.GPA

// mbHeader is a multiboot header with the given further words.
func mbHeader(flags uint32, words ...uint32) []byte {
	b := le.AppendUint32(nil, multibootMagic)
	b = le.AppendUint32(b, flags)
	sum := uint32(multibootMagic)
	b = le.AppendUint32(b, -(sum + flags))
	for _, w := range words {
		b = le.AppendUint32(b, w)
	}
	return b
}

func part(name string, n int, fill byte) Part { return BytesPart(name, bytes.Repeat([]byte{fill}, n)) }

func cstring(t *testing.T, mem *guest.Memory, a gpa) string {
	t.Helper()
	b := peek(t, mem, a, 4096)
	return string(b[:bytes.IndexByte(b, 0)])
}

// walkPages translates a linear address by the page tables in memory.
func walkPages(t *testing.T, mem *guest.Memory, cr3, addr uint64) (uint64, bool) {
	t.Helper()
	table := cr3
	for level := 3; level >= 0; level-- {
		i := addr >> (12 + 9*level) & 511
		e := le.Uint64(peek(t, mem, gpa(table+8*i), 8))
		if e&1 == 0 {
			return 0, false
		}
		if e&(1<<7) != 0 || level == 0 {
			low := uint64(1)<<(12+9*level) - 1
			return e&^low&^(1<<63)&^0xFFF | addr&low, true
		}
		table = e &^ 0xFFF
	}
	return 0, false
}

// checkState holds a state against what the processor itself will demand.
func checkState(t *testing.T, mem *guest.Memory, s State, mode Mode) {
	t.Helper()
	if s.Mode != mode || s.RFLAGS != 2 || s.IDT.Limit != 0 {
		t.Errorf("mode %v, RFLAGS %#x, IDT %+v", s.Mode, s.RFLAGS, s.IDT)
	}
	if s.CR0&1 == 0 || s.CS.Selector != 0x10 || s.DS.Selector != 0x18 || !s.CS.Present || !s.TR.Present || s.TR.S || s.TR.Type != 0xB {
		t.Errorf("CR0 %#x, CS %+v, TR %+v", s.CR0, s.CS, s.TR)
	}
	long := s.EFER == 0x500 && s.CR4 == 0x20 && s.CR0 == 0x80000031 && s.CS.L && !s.CS.DB
	flat := s.EFER == 0 && s.CR4 == 0 && s.CR0 == 0x31 && s.CR3 == 0 && !s.CS.L && s.CS.DB
	if mode == Long64 && !long || mode == Protected32 && !flat {
		t.Errorf("%v: CR0 %#x CR3 %#x CR4 %#x EFER %#x CS %+v", mode, s.CR0, s.CR3, s.CR4, s.EFER, s.CS)
	}
	if s.MTRRDefType != 0x806 {
		t.Errorf("MTRR default type %#x", s.MTRRDefType)
	}
	// The GDT in memory must say what the hidden parts say.
	gdt := peek(t, mem, s.GDT.Base, int(s.GDT.Limit)+1)
	code := uint64(0x00CF9B000000FFFF)
	if mode == Long64 {
		code = 0x00AF9B000000FFFF
	}
	for sel, want := range map[int]uint64{0: 0, 0x10: code, 0x18: 0x00CF93000000FFFF, 0x20: 0x00008B0000000067, 0x28: 0} {
		if got := le.Uint64(gdt[sel:]); got != want {
			t.Errorf("GDT[%#x] = %#016x, want %#016x", sel, got, want)
		}
	}
	if mode == Long64 {
		for _, a := range []uint64{0, 0x1000, 0x1FFFFF, 0x200000, 0x1000040, 0x3FFFFFFF, 0x40000000, 0xFEE00000, 1<<32 - 1} {
			if got, ok := walkPages(t, mem, s.CR3, a); !ok || got != a {
				t.Errorf("%#x is mapped to %#x, %v", a, got, ok)
			}
		}
		if _, ok := walkPages(t, mem, s.CR3, 1<<32); ok {
			t.Error("4 GiB is mapped")
		}
	}
}

func TestLinux64(t *testing.T) {
	kernel := sampleKernel()
	mem, m := machine(t, 64)
	if err := mem.WriteAt(bytes.Repeat([]byte{0xEE}, 0x300000), 0x1000000); err != nil { // a machine that ran before
		t.Fatal(err)
	}
	l, err := open(t, kernel).Load(mem, Linux64, Params{
		Map: m, Cmdline: "console=ttyS0 quiet", RSDP: 0xE0000,
		Initrd: []Part{part("a", 5, 'a'), part("b", 8, 'b'), part("c", 1, 'c')},
	})
	if err != nil {
		t.Fatal(err)
	}
	checkState(t, mem, l.State, Long64)
	if l.State.RIP != 0x1000040 || l.State.RSI != uint64(paramsBase) {
		t.Errorf("RIP %#x, RSI %#x", l.State.RIP, l.State.RSI)
	}
	if l.Kernel.Base != 0x1000000 || l.Kernel.Size != 0x203000 {
		t.Errorf("kernel %+v", l.Kernel)
	}
	elf := open(t, kernel).elf
	for _, s := range elf.segments {
		if got := peek(t, mem, gpa(s.paddr), int(s.fileSize)); !bytes.Equal(got, kernel[s.off:s.off+int64(s.fileSize)]) {
			t.Errorf("segment at %#x differs", s.paddr)
		}
		if bss := peek(t, mem, gpa(s.paddr+s.fileSize), int(s.memSize-s.fileSize)); len(bytes.Trim(bss, "\x00")) != 0 {
			t.Errorf("bss of the segment at %#x is not zero", s.paddr)
		}
	}
	z := peek(t, mem, paramsBase, zeroPageSize)
	for _, tc := range []struct {
		name      string
		off, size int
		want      uint64
	}{
		{"acpi_rsdp_addr", 0x070, 8, 0xE0000},
		{"ext_ramdisk_image", 0x0C0, 4, 0},
		{"ext_cmd_line_ptr", 0x0C8, 4, 0},
		{"e820_entries", 0x1E8, 1, 5},
		{"sentinel", 0x1EF, 1, 0},
		{"boot_flag", 0x1FE, 2, 0xAA55},
		{"header", 0x202, 4, 0x53726448},
		{"version", 0x206, 2, 0x020F},
		{"type_of_loader", 0x210, 1, 0xFF},
		{"loadflags", 0x211, 1, 0x81},
		{"ramdisk_image", 0x218, 4, uint64(l.Initrd.Base)},
		{"ramdisk_size", 0x21C, 4, 8 + 8 + 4},
		{"cmd_line_ptr", 0x228, 4, uint64(cmdlineBase)},
		{"kernel_alignment", 0x230, 4, 0x200000},
		{"cmdline_size", 0x238, 4, 2047},
		{"setup_data", 0x250, 8, 0},
		{"pref_address", 0x258, 8, 0x1000000},
		{"init_size", 0x260, 4, 0x203000},
		{"e820[0].addr", 0x2D0, 8, 0},
		{"e820[0].size", 0x2D8, 8, 0x9FC00},
		{"e820[0].type", 0x2E0, 4, 1},
		{"e820[2].type", 0x2D0 + 40 + 16, 4, 3},
		{"e820[4].addr", 0x2D0 + 80, 8, 0x100000},
	} {
		var b [8]byte
		copy(b[:], z[tc.off:tc.off+tc.size])
		if got := le.Uint64(b[:]); got != tc.want {
			t.Errorf("%s = %#x, want %#x", tc.name, got, tc.want)
		}
	}
	if got := cstring(t, mem, cmdlineBase); got != "console=ttyS0 quiet" {
		t.Errorf("command line %q", got)
	}
	if l.Initrd.Base%guest.PageSize != 0 || l.Initrd.End() > 64<<20 || l.Initrd.End() < 64<<20-guest.PageSize {
		t.Errorf("initrd %+v is not at the top", l.Initrd)
	}
	if got, want := peek(t, mem, l.Initrd.Base, 20), []byte("aaaaa\x00\x00\x00bbbbbbbbc\x00\x00\x00"); !bytes.Equal(got, want) {
		t.Errorf("initrd %q", got)
	}
}

// TestLinux64WithSetup: the header of the bzImage reaches the zero page and
// its limits count.
func TestLinux64WithSetup(t *testing.T) {
	zi := defaultBz(testdata(t, "sample.gz"))
	zi.cmdline = 100
	zi.initrdMax = 40<<20 - 1
	setup := open(t, zi.bytes()).Setup
	mem, m := machine(t, 64)
	p := Params{Map: m, Cmdline: strings.Repeat("x", 100), Setup: setup, Initrd: []Part{part("a", 4096, 1)}}
	l, err := open(t, sampleKernel()).Load(mem, Linux64, p)
	if err != nil {
		t.Fatal(err)
	}
	if l.Initrd.End() != 40<<20 {
		t.Errorf("initrd %+v is above initrd_addr_max", l.Initrd)
	}
	z := peek(t, mem, paramsBase, zeroPageSize)
	if got := z[offLoadFlags]; got != loadedHigh|canUseHeap {
		t.Errorf("load flags %#x: KASLR was not done", got)
	}
	if got := le.Uint32(z[offInitSize:]); got != 4<<20 {
		t.Errorf("init_size %#x", got)
	}
	if z[0x290] != 0 || !bytes.Equal(z[0x26C:0x2D0], make([]byte, 0x2D0-0x26C)) {
		t.Error("more than the header was copied")
	}
	p.Cmdline += "x"
	_, err = open(t, sampleKernel()).Load(mem, Linux64, p)
	oneLine(t, "long command line", err, "kernel command line of 101 bytes", "at most 100")

	// What lies between the kernel's end and init_size is not for the initrd.
	zi.initSize, zi.initrdMax = 23<<20, 40<<20-1
	p.Cmdline, p.Setup = "", open(t, zi.bytes()).Setup
	p.Initrd = []Part{part("a", 2<<20, 1)}
	_, err = open(t, sampleKernel()).Load(mem, Linux64, p)
	if err != nil {
		t.Fatal(err)
	}
	p.Setup.InitrdAddrMax = 18 << 20
	l, err = open(t, sampleKernel()).Load(mem, Linux64, p)
	if err != nil || l.Initrd.End() > 16<<20 {
		t.Errorf("initrd %+v, %v: must lie below the kernel", l, err)
	}
	// With XLF_CAN_BE_LOADED_ABOVE_4G the limit does not hold.
	zi.xload |= xlfAbove4G
	p.Setup = open(t, zi.bytes()).Setup
	if l, err = open(t, sampleKernel()).Load(mem, Linux64, p); err != nil || l.Initrd.End() != 64<<20 {
		t.Errorf("initrd %+v, %v", l, err)
	}
}

func TestBzImage(t *testing.T) {
	for name, tc := range map[string]struct {
		mod  func(*bz)
		mibs uint64
		base uint64
		rip  uint64
		mode Mode
	}{
		"64-bit":           {func(*bz) {}, 64, 0x1000000, 0x1000200, Long64},
		"32-bit":           {func(z *bz) { z.xload = 0 }, 64, 0x1000000, 0x1000000, Protected32},
		"not relocatable":  {func(z *bz) { z.reloc = 0 }, 64, 0x100000, 0x100200, Long64},
		"old protocol":     {func(z *bz) { z.version = 0x0208 }, 64, 0x100000, 0x100000, Protected32},
		"small guest":      {func(*bz) {}, 8, 0x200000, 0x200200, Long64},
		"preferred at 6 G": {func(z *bz) { z.pref = 6 << 30 }, 64, 0x200000, 0x200200, Long64},
	} {
		zi := defaultBz(testdata(t, "sample.gz"))
		tc.mod(&zi)
		file := zi.bytes()
		mem, m := machine(t, tc.mibs)
		l, err := open(t, file).Load(mem, LinuxBzImage, Params{Map: m, Cmdline: "quiet", RSDP: 0xE0000, Initrd: []Part{part("i", 100, 'i')}})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkState(t, mem, l.State, tc.mode)
		if uint64(l.Kernel.Base) != tc.base || l.State.RIP != tc.rip || l.State.RSI != uint64(paramsBase) {
			t.Errorf("%s: kernel at %v, RIP %#x", name, l.Kernel.Base, l.State.RIP)
		}
		if got := peek(t, mem, l.Kernel.Base, len(file)-5*512); !bytes.Equal(got, file[5*512:]) {
			t.Errorf("%s: protected-mode part differs", name)
		}
		z := peek(t, mem, paramsBase, zeroPageSize)
		if got := le.Uint32(z[offCode32:]); uint64(got) != tc.base {
			t.Errorf("%s: code32_start %#x", name, got)
		}
		if l.Initrd.Base < l.Kernel.End() && l.Initrd.End() > l.Kernel.Base {
			t.Errorf("%s: initrd %+v over the kernel %+v", name, l.Initrd, l.Kernel)
		}
	}
	zi := defaultBz(testdata(t, "sample.gz"))
	zi.initSize = 100 << 20
	mem, m := machine(t, 64)
	_, err := open(t, zi.bytes()).Load(mem, LinuxBzImage, Params{Map: m})
	oneLine(t, "too large", err, "kernel: ", "raise -m")
}

func TestPVH(t *testing.T) {
	mem, m := machine(t, 64)
	l, err := open(t, sampleKernel()).Load(mem, PVH, Params{Map: m, Cmdline: "a=b", RSDP: 0xE0000, Initrd: []Part{part("i", 6, 'i')}})
	if err != nil {
		t.Fatal(err)
	}
	checkState(t, mem, l.State, Protected32)
	if l.State.RIP != 0x1000100 || l.State.RBX != uint64(paramsBase) {
		t.Errorf("RIP %#x, RBX %#x", l.State.RIP, l.State.RBX)
	}
	b := peek(t, mem, paramsBase, 56)
	if le.Uint32(b) != 0x336EC578 || le.Uint32(b[4:]) != 1 || le.Uint32(b[12:]) != 1 {
		t.Errorf("start info % x", b)
	}
	mod := peek(t, mem, gpa(le.Uint64(b[16:])), 32)
	if le.Uint64(mod) != uint64(l.Initrd.Base) || le.Uint64(mod[8:]) != 8 {
		t.Errorf("module % x", mod)
	}
	if got := cstring(t, mem, gpa(le.Uint64(b[24:]))); got != "a=b" {
		t.Errorf("command line %q", got)
	}
	if got := le.Uint64(b[32:]); got != 0xE0000 {
		t.Errorf("RSDP %#x", got)
	}
	n := int(le.Uint32(b[48:]))
	if n != len(m) {
		t.Fatalf("%d map entries of %d", n, len(m))
	}
	raw := peek(t, mem, gpa(le.Uint64(b[40:])), 24*n)
	for i, e := range m {
		r := raw[24*i:]
		if le.Uint64(r) != uint64(e.Base) || le.Uint64(r[8:]) != e.Size || le.Uint32(r[16:]) != uint32(e.Type) || le.Uint32(r[20:]) != 0 {
			t.Errorf("map entry %d: % x", i, r[:24])
		}
	}
	// Without an initrd there is no module.
	if _, err = open(t, sampleKernel()).Load(mem, PVH, Params{Map: m}); err != nil {
		t.Fatal(err)
	}
	if b := peek(t, mem, paramsBase, 56); le.Uint32(b[12:]) != 0 || le.Uint64(b[16:]) != 0 {
		t.Errorf("start info without initrd % x", b)
	}
}

func TestMultiboot(t *testing.T) {
	code := bytes.Repeat([]byte{0xF4}, 0x100)
	elf := buildELF(false, 3, 2, 0x400010, testSeg{typ: 1, vaddr: 0x400000, paddr: 0x400000, data: append(mbHeader(mbPageAlign|mbMemory), code...), memSize: 0x1000})
	virtual := buildELF(false, 3, 2, 0xC0400010, testSeg{typ: 1, vaddr: 0xC0400000, paddr: 0x400000, data: append(mbHeader(0), code...), memSize: 0x1000})
	// The header lies 8 bytes into a file that loads from its start.
	flat := append(append(make([]byte, 8), mbHeader(mbKludge, 0x400008, 0x400000, 0x400100, 0x402000, 0x400010)...), code...)
	for name, file := range map[string][]byte{"ELF": elf, "ELF with virtual addresses": virtual, "flat": flat} {
		mem, m := machine(t, 64)
		p := Params{Map: m, Cmdline: "one two", Initrd: []Part{part("env", 10, 'e'), part("disk", 5000, 'd')}}
		l, err := open(t, file).Load(mem, Multiboot, p)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		checkState(t, mem, l.State, Protected32)
		if l.State.RIP != 0x400010 || l.State.RAX != 0x2BADB002 || l.State.RBX != uint64(mbiBase) {
			t.Errorf("%s: RIP %#x RAX %#x RBX %#x", name, l.State.RIP, l.State.RAX, l.State.RBX)
		}
		i := peek(t, mem, mbiBase, 120)
		if got := le.Uint32(i); got != 1|1<<2|1<<3|1<<6|1<<9 {
			t.Errorf("%s: flags %#x", name, got)
		}
		if lower, upper := le.Uint32(i[4:]), le.Uint32(i[8:]); lower != 639 || upper != 63<<10 {
			t.Errorf("%s: memory %d and %d KiB", name, lower, upper)
		}
		if got := cstring(t, mem, gpa(le.Uint32(i[16:]))); got != "kernel one two" {
			t.Errorf("%s: command line %q", name, got)
		}
		if n := le.Uint32(i[20:]); n != 2 {
			t.Fatalf("%s: %d modules", name, n)
		}
		for k, want := range []Part{part("env", 10, 'e'), part("disk", 5000, 'd')} {
			e := peek(t, mem, gpa(le.Uint32(i[24:]))+gpa(16*k), 16)
			start, end := le.Uint32(e), le.Uint32(e[4:])
			if start%guest.PageSize != 0 || int64(end-start) != want.Size || cstring(t, mem, gpa(le.Uint32(e[8:]))) != want.Name {
				t.Errorf("%s: module %d: % x", name, k, e)
			}
			if got := peek(t, mem, gpa(start), 1); got[0] != want.Name[0] {
				t.Errorf("%s: module %d holds %q", name, k, got)
			}
		}
		raw := peek(t, mem, gpa(le.Uint32(i[48:])), int(le.Uint32(i[44:])))
		for k, e := range m {
			r := raw[24*k:]
			if le.Uint32(r) != 20 || le.Uint64(r[4:]) != uint64(e.Base) || le.Uint64(r[12:]) != e.Size || le.Uint32(r[20:]) != uint32(e.Type) {
				t.Errorf("%s: map entry %d: % x", name, k, r[:24])
			}
		}
		if got := cstring(t, mem, gpa(le.Uint32(i[64:]))); got != "hvpost" {
			t.Errorf("%s: loader %q", name, got)
		}
	}
	mem, m := machine(t, 64)
	l, err := open(t, flat).Load(mem, Multiboot, Params{Map: m})
	if err != nil || l.Kernel.Base != 0x400000 || l.Kernel.Size != 0x2000 || l.Initrd.Size != 0 {
		t.Errorf("flat: %+v, %v", l, err)
	}
	if got := peek(t, mem, 0x400000, 0x100); !bytes.Equal(got, flat[:0x100]) {
		t.Error("flat image differs")
	}
	if got := peek(t, mem, 0x400100, 0x1F00); len(bytes.Trim(got, "\x00")) != 0 {
		t.Error("bss is not zero")
	}
	if i := peek(t, mem, mbiBase, 120); le.Uint32(i)&(1<<3) != 0 {
		t.Error("modules are announced without any")
	}
}

func TestLoadErrors(t *testing.T) {
	code := bytes.Repeat([]byte{0xF4}, 64)
	elf := func(entry, paddr, memSize uint64, segs ...testSeg) []byte {
		return buildELF(true, 62, 2, entry, append([]testSeg{{typ: 1, vaddr: paddr, paddr: paddr, data: code, memSize: memSize}}, segs...)...)
	}
	pvh := func(entry uint32) testSeg { return testSeg{typ: 4, data: note("Xen", 18, le.AppendUint32(nil, entry))} }
	flat := func(words ...uint32) []byte { return append(mbHeader(mbKludge, words...), code...) }
	sample := sampleKernel()
	none := Params{}
	big := func(n int64) Params { return Params{Initrd: []Part{{Name: "i", R: failing{1 << 62}, Size: n}}} }
	for name, tc := range map[string]struct {
		file  []byte
		proto Protocol
		p     Params
		want  string
	}{
		"entry outside":          {elf(0x300000, 0x200000, 64), Linux64, none, "entry point 0x300000 outside"},
		"below 1 MiB":            {elf(0x8000, 0x8000, 64), Linux64, none, "below 1 MiB"},
		"beyond memory":          {elf(0x10000000, 0x10000000, 64), Linux64, none, "raise -m"},
		"bss beyond memory":      {elf(0x200000, 0x200000, 1<<40), Linux64, none, "raise -m"},
		"over reserved memory":   {elf(0x2FFF000, 0x2FFF000, 0x4000), Linux64, none, "over the reserved memory at 0x3000000"},
		"linux64 of bzImage":     {defaultBz(sample).bytes(), Linux64, none, "bzImage"},
		"bzimage of ELF":         {sample, LinuxBzImage, none, "not a bzImage"},
		"pvh without note":       {elf(0x200000, 0x200000, 64), PVH, none, "no PVH"},
		"pvh entry outside":      {elf(0x200000, 0x200000, 64, pvh(0x300000)), PVH, none, "PVH entry point 0x300000 outside"},
		"multiboot without":      {sample, Multiboot, none, "no multiboot"},
		"flat, header below":     {flat(0x1FF000, 0x200000, 0, 0, 0x200020), Multiboot, none, "damaged multiboot"},
		"flat, before the file":  {flat(0x200100, 0x200000, 0, 0, 0x200020), Multiboot, none, "damaged multiboot"},
		"flat, more than file":   {flat(0x200000, 0x200000, 0x210000, 0, 0x200020), Multiboot, none, "cut short"},
		"flat, end before start": {flat(0x200000, 0x200000, 0x100000, 0, 0x200020), Multiboot, none, "cut short"},
		"flat, bss before data":  {flat(0x200000, 0x200000, 0x200040, 0x200020, 0x200020), Multiboot, none, "bss ends"},
		"flat, entry outside":    {flat(0x200000, 0x200000, 0x200040, 0, 0x200040), Multiboot, none, "entry 0x200040 outside"},
		"initrd too large":       {sample, Linux64, big(60 << 20), "initrd of 60 MiB (60 of them i) does not fit into 64 MiB of guest memory; raise -m"},
		"initrd huge":            {sample, Linux64, big(1 << 62), "initrd i: has a size"},
		"initrd negative":        {sample, Linux64, big(-1), "initrd i: has a size"},
		"initrd unreadable":      {sample, Linux64, Params{Initrd: []Part{{Name: "i", R: failing{0}, Size: 10}}}, "disk on fire"},
		"initrd shrunk":          {sample, Linux64, Params{Initrd: []Part{{Name: "i", R: bytes.NewReader(nil), Size: 10}}}, "cut short"},
		"initrd parts":           {sample, Linux64, Params{Initrd: make([]Part, maxInitrdParts+1)}, "65 parts"},
		"modules too large":      {flat(0x200000, 0x200000, 0, 0, 0x200020), Multiboot, big(70 << 20), "initrd of 70 MiB"},
		"multiboot strings":      {flat(0x200000, 0x200000, 0, 0, 0x200020), Multiboot, Params{Cmdline: strings.Repeat("x", mbiSize)}, "multiboot information"},
		"command line":           {sample, Linux64, Params{Cmdline: strings.Repeat("x", 2048)}, "at most 2047"},
		"command line, PVH":      {sample, PVH, Params{Cmdline: strings.Repeat("x", 2048)}, "at most 2047"},
		"command line with NUL":  {sample, Linux64, Params{Cmdline: "a\x00b"}, "zero byte"},
	} {
		mem, m := machine(t, 64, Entry{0x3000000, 0x1000, Reserved})
		tc.p.Map = m
		im, err := New(bytes.NewReader(tc.file), int64(len(tc.file)), "kernel")
		if err == nil {
			// Check finds the same but for what only reading the initrd shows.
			checked := im.Check(tc.proto, tc.p)
			_, err = im.Load(mem, tc.proto, tc.p)
			reading := name == "initrd unreadable" || name == "initrd shrunk"
			if reading != (checked == nil) || checked != nil && checked.Error() != err.Error() {
				t.Errorf("%s: Check says %v, Load %v", name, checked, err)
			}
		}
		oneLine(t, name, err, "", tc.want)
	}
}

// TestLoadFromFiles takes the path that reads straight into guest memory.
func TestLoadFromFiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) *os.File {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	kernel := sampleKernel()
	im, err := Open(write("vmlinux", kernel))
	if err != nil {
		t.Fatal(err)
	}
	initrd := bytes.Repeat([]byte("0123456789"), 1000)
	f := write("initrd", initrd)
	mem, m := machine(t, 64)
	l, err := im.Load(mem, Linux64, Params{Map: m, Initrd: []Part{{Name: f.Name(), R: f, Size: int64(len(initrd))}, part("more", 3, 'm')}})
	if err != nil {
		t.Fatal(err)
	}
	if got := peek(t, mem, l.Initrd.Base, len(initrd)+4); !bytes.Equal(got, append(initrd, "mmm\x00"...)) {
		t.Error("initrd differs")
	}
	s := im.elf.segments[0]
	if got := peek(t, mem, gpa(s.paddr), int(s.fileSize)); !bytes.Equal(got, kernel[s.off:s.off+int64(s.fileSize)]) {
		t.Error("kernel differs")
	}
}

// TestInitrdAvoids: an initrd stays off the kernel and off what is reserved,
// and uses any hole that is large enough.
func TestInitrdAvoids(t *testing.T) {
	_, m, err := Layout(64<<20, Entry{0x3800000, 0x100000, Reserved})
	if err != nil {
		t.Fatal(err)
	}
	kernel := Entry{0x1000000, 0x1800000, RAM} // 16-40 MiB
	for _, tc := range []struct{ size, want uint64 }{
		{4096, 64<<20 - 4096},
		{7 << 20, 57 << 20},
		{8 << 20, 56<<20 - 8<<20}, // below the reserved MiB
		{16 << 20, 40 << 20},      // exactly between kernel and reserved
		{16<<20 + 1, 0},           // nowhere
		{15 << 20, 41 << 20},
	} {
		a, ok := findHigh(m, tc.size, 1<<32, kernel)
		if tc.want == 0 && ok || tc.want != 0 && (!ok || uint64(a) != tc.want) {
			t.Errorf("%#x bytes: at %v, %v; want %#x", tc.size, a, ok, tc.want)
		}
	}
}

// TestPartLoad: a part that loads itself is given its place, and the padding
// behind it is still cleared.
func TestPartLoad(t *testing.T) {
	mem, m := machine(t, 64)
	if err := mem.WriteAt(bytes.Repeat([]byte{0xEE}, 4096), 64<<20-4096); err != nil {
		t.Fatal(err)
	}
	self := Part{Name: "image", Size: 5, Load: func(mem *guest.Memory, a guest.GPA) error { return mem.WriteAt([]byte("image"), a) }}
	l, err := open(t, sampleKernel()).Load(mem, Linux64, Params{Map: m, Initrd: []Part{self, part("b", 3, 'b')}})
	if err != nil {
		t.Fatal(err)
	}
	if got := peek(t, mem, l.Initrd.Base, 12); string(got) != "image\x00\x00\x00bbb\x00" {
		t.Errorf("initrd %q", got)
	}
	self.Load = func(*guest.Memory, guest.GPA) error { return errDisk }
	_, err = open(t, sampleKernel()).Load(mem, Linux64, Params{Map: m, Initrd: []Part{self}})
	oneLine(t, "failing part", err, "initrd image: ", "disk on fire")
}

// TestRegressInitrdEndsWithRAM: a part without padding that ends exactly where
// RAM ends was refused, because clearing no bytes after it is outside RAM.
func TestRegressInitrdEndsWithRAM(t *testing.T) {
	mem, m := machine(t, 64)
	for _, n := range []int{4096, 8192 - 4, 8192} {
		l, err := open(t, sampleKernel()).Load(mem, Linux64, Params{Map: m, Initrd: []Part{part("a", n, 'a')}})
		if err != nil || l.Initrd.Size != uint64(n) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	// The same for a segment without bss at the end of RAM.
	end := buildELF(true, 62, 2, 64<<20-64, testSeg{typ: 1, vaddr: 64<<20 - 64, paddr: 64<<20 - 64, data: make([]byte, 64), memSize: 64})
	if _, err := open(t, end).Load(mem, Linux64, Params{Map: m}); err != nil {
		t.Error(err)
	}
}
