package smbios

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hvpost/hvpost/guest"
)

type parsed struct {
	handle uint16
	data   []byte
	text   []string
}

func (p parsed) str(off int) string {
	if n := int(p.data[off]); n > 0 {
		return p.text[n-1]
	}
	return ""
}

// parse reads the tables the way a guest does, out of the first MiB: it scans
// for the entry point and walks the structures.
func parse(t *testing.T, ram []byte) map[byte][]parsed {
	t.Helper()
	for at := 0xF0000; at < 0x100000; at += 16 {
		e := ram[at:]
		if string(e[:5]) != "_SM3_" {
			continue
		}
		var sum byte
		for _, v := range e[:e[6]] {
			sum += v
		}
		if sum != 0 || e[6] != 24 || e[7] != 3 {
			t.Fatalf("bad entry point % x", e[:24])
		}
		size, addr := le.Uint32(e[12:]), le.Uint64(e[16:])
		b := ram[addr : addr+uint64(size)]
		out := map[byte][]parsed{}
		for len(b) > 0 {
			n := int(b[1])
			if n < 4 || n > len(b) {
				t.Fatalf("structure of type %d: length %d of %d", b[0], n, len(b))
			}
			p := parsed{handle: le.Uint16(b[2:]), data: b[:n]}
			end := bytes.Index(b[n:], []byte{0, 0})
			if end < 0 {
				t.Fatalf("structure of type %d: strings do not end", b[0])
			}
			if end > 0 {
				p.text = strings.Split(string(b[n:n+end]), "\x00")
			}
			out[b[0]] = append(out[b[0]], p)
			last := b[0] == 127
			b = b[n+end+2:]
			if last && len(b) != 0 {
				t.Errorf("%d bytes after the end of the table", len(b))
			}
		}
		return out
	}
	t.Fatal("no entry point in 0xF0000-0xFFFFF")
	return nil
}

func write(t *testing.T, c Config) []byte {
	t.Helper()
	mem, err := guest.New(guest.Region{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if err := Write(mem, c); err != nil {
		t.Fatal(err)
	}
	ram := make([]byte, 1<<20)
	if err := mem.ReadAt(ram, 0); err != nil {
		t.Fatal(err)
	}
	return ram
}

func TestTables(t *testing.T) {
	oem := []string{"io.systemd.credential:a=b", "", "last"}
	all := parse(t, write(t, Config{
		VPs: 300, Memory: 6 << 30, Version: "1.2.3", Serial: "S-1", OEM: oem,
		UUID: [16]byte{0x00, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF},
	}))
	handles := map[uint16]bool{}
	for typ, list := range all {
		for _, p := range list {
			if handles[p.handle] {
				t.Errorf("type %d: handle %#x twice", typ, p.handle)
			}
			handles[p.handle] = true
		}
	}
	one := func(typ byte) parsed {
		t.Helper()
		if len(all[typ]) != 1 {
			t.Fatalf("%d structures of type %d", len(all[typ]), typ)
		}
		return all[typ][0]
	}
	firmware := one(0)
	if firmware.str(4) != "hvpost" || firmware.str(5) != "1.2.3" || len(firmware.data) != 0x18 {
		t.Errorf("firmware: %q %q, %d bytes", firmware.str(4), firmware.str(5), len(firmware.data))
	}
	if firmware.data[0x13]&(1<<4) == 0 {
		t.Error("firmware does not say that this is a virtual machine")
	}
	system := one(1)
	if system.str(4) != "Microsoft Corporation" || system.str(5) != "Virtual Machine" || system.str(6) != "hvpost 1.2.3" || system.str(7) != "S-1" {
		t.Errorf("system: %q", system.text)
	}
	if got := system.data[8:24]; !bytes.Equal(got, []byte{0x33, 0x22, 0x11, 0x00, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF}) {
		t.Errorf("UUID % x", got)
	}
	for typ, size := range map[byte]int{1: 0x1B, 3: 0x16, 4: 0x30, 16: 0x17, 17: 0x28, 32: 0x0B, 127: 4} {
		if got := len(one(typ).data); got != size {
			t.Errorf("type %d: %#x bytes, want %#x", typ, got, size)
		}
	}
	cpu := one(4)
	if cpu.data[0x23] != 255 || le.Uint16(cpu.data[0x2A:]) != 300 || le.Uint16(cpu.data[0x2E:]) != 300 {
		t.Errorf("processor: % x", cpu.data)
	}
	if got := one(11); int(got.data[4]) != 3 || got.text[0] != oem[0] || got.text[1] != " " || got.text[2] != "last" {
		t.Errorf("OEM strings: %q", got.text)
	}
	if oem[1] != "" {
		t.Error("the caller's strings were changed")
	}
	if got := le.Uint64(one(16).data[0x0F:]); got != 6<<30 {
		t.Errorf("memory array: %#x bytes", got)
	}
	if got := le.Uint16(one(17).data[0x0C:]); got != 6<<10 {
		t.Errorf("memory device: %d MiB", got)
	}
	maps := all[19]
	if len(maps) != 2 {
		t.Fatalf("%d memory maps", len(maps))
	}
	for i, want := range [][2]uint64{{0, 3<<30 - 1}, {4 << 30, 7<<30 - 1}} {
		if a, b := le.Uint64(maps[i].data[0x0F:]), le.Uint64(maps[i].data[0x17:]); a != want[0] || b != want[1] {
			t.Errorf("memory map %d: %#x-%#x", i, a, b)
		}
	}
}

func TestSmallAndLarge(t *testing.T) {
	small := parse(t, write(t, Config{VPs: 1, Memory: 512 << 20}))
	if len(small[19]) != 1 || len(small[11]) != 0 || small[0][0].str(5) != "devel" {
		t.Errorf("small machine: %d maps, %d OEM structures", len(small[19]), len(small[11]))
	}
	large := parse(t, write(t, Config{VPs: 1, Memory: 64 << 30}))[17][0]
	if short, long := le.Uint16(large.data[0x0C:]), le.Uint32(large.data[0x1C:]); short != 0x7FFF || long != 64<<10 {
		t.Errorf("64 GiB: %#x and %d MiB", short, long)
	}
}

func TestBadConfig(t *testing.T) {
	many := make([]string, 256)
	for name, c := range map[string]Config{
		"no VPs":           {VPs: 0},
		"too many VPs":     {VPs: 65536},
		"too many strings": {VPs: 1, OEM: many},
		"zero byte":        {VPs: 1, Serial: "a\x00b"},
		"too long":         {VPs: 1, OEM: []string{strings.Repeat("x", Room)}},
	} {
		c.Memory = 1 << 30
		if _, err := Build(c); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: error %v", name, err)
		}
	}
	mem, err := guest.New(guest.Region{Size: 0xF1000 - 0x1000})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	if err := Write(mem, Config{VPs: 1, Memory: 1 << 30}); err == nil {
		t.Error("tables outside RAM were accepted")
	}
}

// TestDMIDecode lets the usual tool read the tables where it is installed;
// TestTables holds without it.
func TestDMIDecode(t *testing.T) {
	tool := os.Getenv("HVPOST_DMIDECODE")
	if tool == "" {
		var err error
		if tool, err = exec.LookPath("dmidecode"); err != nil {
			t.Skip("TABLES NOT READ BY DMIDECODE: it is missing; apt install dmidecode")
		}
	}
	b, err := Build(Config{VPs: 4, Memory: 6 << 30, Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	// In a dump the table's address is its offset in the file.
	addr := le.Uint64(b[16:])
	le.PutUint64(b[16:], 32)
	for i := range 8 {
		b[5] += byte(addr >> (8 * i))
	}
	b[5] -= 32
	file := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tool, "--from-dump", file).CombinedOutput()
	if err != nil {
		t.Fatalf("dmidecode: %v\n%s", err, out)
	}
	for _, want := range []string{
		"SMBIOS 3.0.0 present", "Vendor: hvpost", "Version: 1.2.3", "System is a virtual machine",
		"Manufacturer: Microsoft Corporation", "Product Name: Virtual Machine", "Core Count: 4",
		"Size: 6 GB", "Starting Address: 0x00000000000", "Range Size: 3 GB", "End Of Table",
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("dmidecode does not say %q:\n%s", want, out)
		}
	}
	for _, bad := range []string{"Wrong", "OUT OF SPEC", "BAD INDEX", "truncated", "Invalid", "broken"} {
		if bytes.Contains(out, []byte(bad)) {
			t.Errorf("dmidecode says %q:\n%s", bad, out)
		}
	}
}
