package boot

import (
	"bytes"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/hvpost/hvpost/guest"
)

// testSeg is a program header of a made-up ELF.
type testSeg struct {
	typ                     uint32
	vaddr, paddr            uint64
	data                    []byte
	memSize                 uint64
	overrideOff, overrideSz *uint64 // lies about the file
}

// buildELF makes an ELF file of either class.
func buildELF(class64 bool, machine, typ uint16, entry uint64, segs ...testSeg) []byte {
	headerLen, phLen := 52, 32
	if class64 {
		headerLen, phLen = 64, 56
	}
	b := make([]byte, headerLen+phLen*len(segs))
	copy(b, "\x7fELF\x01\x01\x01")
	le.PutUint16(b[16:], typ)
	le.PutUint16(b[18:], machine)
	le.PutUint32(b[20:], 1)
	if class64 {
		b[4] = 2
		le.PutUint64(b[24:], entry)
		le.PutUint64(b[32:], uint64(headerLen))
		le.PutUint16(b[54:], uint16(phLen))
		le.PutUint16(b[56:], uint16(len(segs)))
	} else {
		le.PutUint32(b[24:], uint32(entry))
		le.PutUint32(b[28:], uint32(headerLen))
		le.PutUint16(b[42:], uint16(phLen))
		le.PutUint16(b[44:], uint16(len(segs)))
	}
	for i, s := range segs {
		for len(b)%16 != 0 {
			b = append(b, 0)
		}
		off, size := uint64(len(b)), uint64(len(s.data))
		b = append(b, s.data...)
		if s.overrideOff != nil {
			off = *s.overrideOff
		}
		if s.overrideSz != nil {
			size = *s.overrideSz
		}
		p := b[headerLen+phLen*i:]
		le.PutUint32(p, s.typ)
		if class64 {
			for j, v := range []uint64{off, s.vaddr, s.paddr, size, s.memSize, 4096} {
				le.PutUint64(p[8+8*j:], v)
			}
		} else {
			for j, v := range []uint64{off, s.vaddr, s.paddr, size, s.memSize} {
				le.PutUint32(p[4+4*j:], uint32(v))
			}
		}
	}
	return b
}

func note(name string, typ uint32, desc []byte) []byte {
	b := le.AppendUint32(nil, uint32(len(name)+1))
	b = le.AppendUint32(b, uint32(len(desc)))
	b = le.AppendUint32(b, typ)
	b = append(append(b, name...), 0)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	b = append(b, desc...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// sampleKernel is a vmlinux in small: two segments, Linux and PVH notes, and
// enough made-up code with calls in it for the x86 filter of xz to matter.
// testdata/sample.* is this, packed by the reference tools.
func sampleKernel() []byte {
	rng := rand.New(rand.NewPCG(1, 2))
	code := make([]byte, 0, 48<<10)
	for len(code) < 40<<10 {
		code = append(code, 0x48, 0x89, 0xE5, 0xE8)
		code = le.AppendUint32(code, uint32(0x8000-len(code))) // a call to one place
		for range rng.IntN(12) {
			code = append(code, byte(rng.IntN(16)))
		}
	}
	notes := append(note("Linux", 0x101, []byte{0}), note("Xen", 18, le.AppendUint64(nil, 0x1000100))...)
	return buildELF(true, 62, 2, 0x1000040,
		testSeg{typ: 1, vaddr: 0xFFFFFFFF81000000, paddr: 0x1000000, data: code, memSize: 0x10000},
		testSeg{typ: 1, vaddr: 0xFFFFFFFF82000000, paddr: 0x1200000, data: bytes.Repeat([]byte("data"), 1000), memSize: 0x3000},
		testSeg{typ: 4, data: notes},
	)
}

// bz describes a made-up bzImage.
type bz struct {
	version   uint16
	sects     byte
	loadFlags byte
	xload     uint16
	payload   []byte
	trailer   []byte // after the payload: the appended size
	initSize  uint32
	cmdline   uint32
	initrdMax uint32
	pref      uint64
	align     uint32
	reloc     byte
	release   string
}

func defaultBz(payload []byte) bz {
	return bz{
		version: 0x020F, sects: 4, loadFlags: loadedHigh | kaslrFlag, xload: xlfKernel64, payload: payload, initSize: 4 << 20,
		cmdline: 2047, initrdMax: 0x7FFFFFFF, pref: 0x1000000, align: 0x200000, reloc: 1, release: "6.12.0-test (builder) #1",
	}
}

func (z bz) bytes() []byte {
	const payloadOff = 0x240
	setup := make([]byte, (int(z.sects)+1)*512)
	if z.sects == 0 {
		setup = make([]byte, 5*512)
	}
	setup[setupStart] = z.sects
	le.PutUint16(setup[offBootFlag:], 0xAA55)
	setup[offJump], setup[offJump+1] = 0xEB, 0x6A
	copy(setup[offMagic:], "HdrS")
	le.PutUint16(setup[offVersion:], z.version)
	setup[offLoadFlags] = z.loadFlags
	le.PutUint32(setup[offInitrdMax:], z.initrdMax)
	le.PutUint32(setup[offAlignment:], z.align)
	setup[offRelocatable] = z.reloc
	le.PutUint16(setup[offXLoadFlags:], z.xload)
	le.PutUint32(setup[offCmdlineSize:], z.cmdline)
	le.PutUint32(setup[offPayload:], payloadOff)
	le.PutUint32(setup[offPayloadLen:], uint32(len(z.payload)+len(z.trailer)))
	le.PutUint64(setup[offPrefAddress:], z.pref)
	le.PutUint32(setup[offInitSize:], z.initSize)
	if z.release != "" {
		le.PutUint16(setup[offKernelVer:], 0x300)
		copy(setup[0x500:], z.release)
	}
	pm := append(make([]byte, payloadOff), z.payload...)
	return append(append(setup, append(pm, z.trailer...)...), make([]byte, 32)...)
}

// size is the four bytes that the kernel's build appends.
func size(b []byte) []byte { return le.AppendUint32(nil, uint32(len(b))) }

func open(t testing.TB, b []byte) *Image {
	t.Helper()
	im, err := New(bytes.NewReader(b), int64(len(b)), "kernel")
	if err != nil {
		t.Fatal(err)
	}
	return im
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// machine is guest memory of n MiB with its map.
func machine(t testing.TB, mibs uint64, reserved ...Entry) (*guest.Memory, []Entry) {
	t.Helper()
	regions, m, err := Layout(mibs<<20, reserved...)
	if err != nil {
		t.Fatal(err)
	}
	mem, err := guest.New(regions...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { mem.Close() })
	return mem, m
}

func peek(t testing.TB, mem *guest.Memory, a guest.GPA, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	if err := mem.ReadAt(b, a); err != nil {
		t.Fatal(err)
	}
	return b
}
