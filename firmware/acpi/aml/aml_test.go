package aml

import (
	"bytes"
	"encoding/hex"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestPkgLengthBoundaries(t *testing.T) {
	for _, tc := range []struct {
		body int
		want string
	}{
		{0, "01"},
		{1, "02"},
		{61, "3e"},
		{62, "3f"},   // 63 in all: the most that one byte says
		{63, "4104"}, // 65
		{64, "4204"},
		{4092, "4eff"},
		{4093, "4fff"},   // 4095: the most of two bytes
		{4094, "810001"}, // 4097
		{4095, "820001"},
		{1<<20 - 4, "8fffff"}, // 0xFFFFF
		{1<<20 - 3, "c1000001"},
		{1<<28 - 5, "cfffffff"},
	} {
		if got := hex.EncodeToString(PkgLength(tc.body)); got != tc.want {
			t.Errorf("PkgLength(%d) = %s, want %s", tc.body, got, tc.want)
		}
	}
}

// decodePkgLength follows the specification's table, not the encoder.
func decodePkgLength(b []byte) (value, size int) {
	size = int(b[0]>>6) + 1
	if size == 1 {
		return int(b[0] & 0x3F), 1
	}
	value = int(b[0] & 0xF)
	for i := 1; i < size; i++ {
		value |= int(b[i]) << (4 + 8*(i-1))
	}
	return value, size
}

func TestPkgLengthRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 1<<28-5).Draw(t, "n")
		b := PkgLength(n)
		value, size := decodePkgLength(b)
		if size != len(b) || value != n+size {
			t.Fatalf("PkgLength(%d) = %x: says %d in %d bytes", n, b, value, size)
		}
	})
}

func TestPath(t *testing.T) {
	for path, want := range map[string]string{
		`_SB`:         "5f53425f",
		`\_SB`:        "5c5f53425f",
		`\`:           "5c00",
		`^`:           "5e00",
		`^^A`:         "5e5e415f5f5f",
		`A.B`:         "2e415f5f5f425f5f5f",
		`\_SB.VMOD`:   "5c2e5f53425f564d4f44",
		`A.B.C`:       "2f03415f5f5f425f5f5f435f5f5f",
		`C0FF.ABCD.Z`: "2f0343304646414243445a5f5f5f",
	} {
		if got := hex.EncodeToString(Path(path)); got != want {
			t.Errorf("Path(%q) = %s, want %s", path, got, want)
		}
	}
}

func TestIntegerWidths(t *testing.T) {
	for v, want := range map[uint64]string{
		0:                  "00",
		1:                  "01",
		2:                  "0a02",
		0xFF:               "0aff",
		0x100:              "0b0001",
		0xFFFF:             "0bffff",
		0x10000:            "0c00000100",
		math.MaxUint32:     "0cffffffff",
		math.MaxUint32 + 1: "0e0000000001000000",
		math.MaxUint64 - 1: "0efeffffffffffffff",
		math.MaxUint64:     "ff",
	} {
		if got := hex.EncodeToString(Integer(v)); got != want {
			t.Errorf("Integer(%#x) = %s, want %s", v, got, want)
		}
	}
}

func TestBugsPanic(t *testing.T) {
	for name, f := range map[string]func(){
		"empty name":            func() { Path("") },
		"lower case":            func() { Path("abc") },
		"digit first":           func() { Path("1ABC") },
		"long segment":          func() { Path("ABCDE") },
		"empty segment":         func() { Path("A..B") },
		"caret after backslash": func() { Path(`\^A`) },
		"string with NUL":       func() { String("a\x00b") },
		"string not ASCII":      func() { String("é") },
		"short EISA id":         func() { EISAID("PNP050") },
		"EISA id in lower case": func() { EISAID("pnp0501") },
		"EISA id not hex":       func() { EISAID("PNP050G") },
		"method arguments":      func() { Method("M", 8, false) },
		"argument":              func() { Arg(7) },
		"local":                 func() { Local(8) },
		"package elements":      func() { Package(make([][]byte, 256)...) },
		"negative length":       func() { PkgLength(-1) },
		"huge length":           func() { PkgLength(1<<28 - 4) },
		"no ports":              func() { IO(0x10, 0) },
		"ports past the end":    func() { IO(0xFFFF, 2) },
		"interrupt":             func() { IRQNoFlags(16) },
		"wide DWord":            func() { DWordMemory(1<<32, 1, AddressFlags{}) },
		"DWord past 4 GiB":      func() { DWordMemory(1<<31, 1<<31+1, AddressFlags{}) },
		"empty DWord":           func() { DWordMemory(1<<31, 0, AddressFlags{}) },
		"QWord that wraps":      func() { QWordMemory(math.MaxUint64, 2, AddressFlags{}) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

// everything uses each term once; the ASL next to it says the same.
func everything() []byte {
	long := make([]byte, 70)
	for i := range long {
		long[i] = byte(i)
	}
	huge := bytes.Repeat([]byte{0xAA}, 4200)
	return concat(
		Name("LONG", Buffer(long)),
		Name("HUGE", Buffer(huge)),
		Name("STR0", String("VMBus")),
		Name("PKG0", Package(Integer(0), Integer(1), Integer(0x1234), Package(String("x")))),
		Method("MTH0", 2, true,
			Store(Arg(1), Local(3)),
			Store(Local(3), Path(`\STR0`)),
			Return(Integer(0xFFFFFFFFFF)),
		),
		Method("MTH1", 0, false),
		Scope(`\_SB`,
			Device("DEV0",
				Name("_HID", EISAID("PNP0501")),
				Name("_CRS", ResourceTemplate(
					IO(0x3F8, 8),
					IRQNoFlags(4, 8),
					Memory32Fixed(0xFEC00000, 0x1000, true),
					Memory32Fixed(0xFED00000, 0x400, false),
					DWordMemory(0xE0000000, 0x10000000, AddressFlags{Producer: true, Cacheable: true}),
					DWordMemory(0xFFFF0000, 0x10000, AddressFlags{ReadOnly: true}),
					QWordMemory(0x1000000000, 0x1000000000, AddressFlags{Producer: true, Prefetchable: true}),
				)),
			),
		),
	)
}

const everythingASL = `DefinitionBlock ("", "DSDT", 2, "HVPOST", "HVPOST", 1) {
 Name (LONG, Buffer () { %LONG% })
 Name (HUGE, Buffer () { %HUGE% })
 Name (STR0, "VMBus")
 Name (PKG0, Package () { 0, 1, 0x1234, Package () { "x" } })
 Method (MTH0, 2, Serialized) {
  Store (Arg1, Local3)
  Store (Local3, \STR0)
  Return (0xFFFFFFFFFF)
 }
 Method (MTH1, 0, NotSerialized) { }
 Scope (\_SB) { Device (DEV0) {
  Name (_HID, EisaId ("PNP0501"))
  Name (_CRS, ResourceTemplate () {
   IO (Decode16, 0x3F8, 0x3F8, 1, 8)
   IRQNoFlags () {4, 8}
   Memory32Fixed (ReadWrite, 0xFEC00000, 0x1000)
   Memory32Fixed (ReadOnly, 0xFED00000, 0x400)
   DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite, 0, 0xE0000000, 0xEFFFFFFF, 0, 0x10000000)
   DWordMemory (ResourceConsumer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadOnly, 0, 0xFFFF0000, 0xFFFFFFFF, 0, 0x10000)
   QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Prefetchable, ReadWrite, 0, 0x1000000000, 0x1FFFFFFFFF, 0, 0x1000000000)
  })
 } }
}
`

// TestSameAsCompiler holds every term against what the reference compiler
// emits for the same source.
func TestSameAsCompiler(t *testing.T) {
	iasl, err := exec.LookPath("iasl")
	if err != nil {
		if os.Getenv("HVPOST_NEED_IASL") == "1" {
			t.Fatal("iasl is missing (apt install acpica-tools) and HVPOST_NEED_IASL=1")
		}
		t.Skip("AML NOT HELD AGAINST THE REFERENCE COMPILER: iasl is missing; apt install acpica-tools")
	}
	long := make([]string, 70)
	for i := range long {
		long[i] = "0x" + hex.EncodeToString([]byte{byte(i)})
	}
	huge := strings.TrimSuffix(strings.Repeat("0xAA,", 4200), ",")
	src := strings.NewReplacer("%LONG%", strings.Join(long, ","), "%HUGE%", huge).Replace(everythingASL)
	dir := t.TempDir()
	file := filepath.Join(dir, "all.asl")
	if err := os.WriteFile(file, []byte(src), 0o644); err != nil {
		t.Fatal(err)
	}
	// -on: names are emitted as written.
	out, err := exec.Command(iasl, "-on", "-p", filepath.Join(dir, "all"), file).CombinedOutput()
	if err != nil {
		t.Fatalf("iasl: %v\n%s", err, out)
	}
	want, err := os.ReadFile(filepath.Join(dir, "all.aml"))
	if err != nil {
		t.Fatal(err)
	}
	want = want[36:]
	got := everything()
	if !bytes.Equal(got, want) {
		i := 0
		for i < len(got) && i < len(want) && got[i] == want[i] {
			i++
		}
		t.Fatalf("differs at byte %d of %d (compiler: %d):\n got %x\nwant %x", i, len(got), len(want),
			got[max(0, i-16):min(len(got), i+16)], want[max(0, i-16):min(len(want), i+16)])
	}
}
