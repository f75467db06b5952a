package boot

import (
	"bytes"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"
)

// tryAll does with an image whatever can be done with it. What comes back
// must be an error of one line or a state whose entry lies in guest memory.
func tryAll(t *testing.T, file []byte) {
	im, err := New(bytes.NewReader(file), int64(len(file)), "fuzz")
	if err != nil {
		checkError(t, err)
		return
	}
	im.Default()
	if im.Setup != nil {
		// Keep one run short: the bound itself is tested elsewhere.
		im.Setup.InitSize = min(im.Setup.InitSize, 1<<20)
	}
	if im.Kind != Compressed {
		if _, _, err := im.Unpack(discard{}); err != nil {
			checkError(t, err)
		}
	}
	mem, m := machine(t, 24)
	for _, proto := range []Protocol{Linux64, LinuxBzImage, PVH, Multiboot} {
		l, err := im.Load(mem, proto, Params{Map: m, Cmdline: "a", Setup: im.Setup, Initrd: []Part{part("i", 100, 1)}})
		if err != nil {
			checkError(t, err)
			continue
		}
		if !mem.Contains(gpa(l.State.RIP), 1) || l.Kernel.End() > 24<<20 {
			t.Fatalf("%v: RIP %#x, kernel %+v", proto, l.State.RIP, l.Kernel)
		}
		if l.Initrd.Base < l.Kernel.End() && l.Initrd.End() > l.Kernel.Base {
			t.Fatalf("%v: initrd %+v over kernel %+v", proto, l.Initrd, l.Kernel)
		}
	}
	mem.Close()
}

func checkError(t *testing.T, err error) {
	if s := err.Error(); strings.Contains(s, "\n") || s == "" {
		t.Fatalf("error %q", s)
	}
}

func FuzzBzImage(f *testing.F) {
	// Small seeds: what the fuzzer does with the large files in testdata is
	// mostly waiting for dictionaries.
	kernel := tinyKernel()
	for _, payload := range tinyPayloads(f, kernel) {
		z := defaultBz(payload)
		z.sects, z.release = 1, ""
		if packingOf(payload) != packedGzip {
			z.trailer = size(kernel)
		}
		f.Add(z.bytes())
	}
	z := defaultBz(kernel)
	z.version, z.sects, z.release = 0x0206, 1, ""
	f.Add(z.bytes())
	f.Fuzz(tryAll)
}

func FuzzELF(f *testing.F) {
	code := bytes.Repeat([]byte{0xF4}, 64)
	load := testSeg{typ: 1, vaddr: 0x200000, paddr: 0x200000, data: code, memSize: 0x2000}
	pvh := testSeg{typ: 4, data: note("Xen", 18, le.AppendUint32(nil, 0x200010))}
	f.Add(buildELF(true, 62, 2, 0x200000, load, pvh))
	f.Add(buildELF(false, 3, 2, 0x200000, load, pvh))
	high := load
	high.vaddr = 0xFFFFFFFF81000000
	f.Add(buildELF(true, 62, 2, 0xFFFFFFFF81000000, high))
	f.Fuzz(tryAll)
}

func FuzzMultiboot(f *testing.F) {
	code := bytes.Repeat([]byte{0xF4}, 64)
	f.Add(append(mbHeader(mbKludge, 0x200000, 0x200000, 0, 0, 0x200020), code...))
	f.Add(append(append(make([]byte, 8), mbHeader(mbKludge, 0x400008, 0x400000, 0x400040, 0x402000, 0x400010)...), code...))
	f.Add(buildELF(false, 3, 2, 0x200010, testSeg{typ: 1, vaddr: 0x200000, paddr: 0x200000, data: append(mbHeader(3), code...), memSize: 0x1000}))
	f.Fuzz(tryAll)
}

// FuzzLZO: the decoder is our own, so it gets a target of its own.
func FuzzLZO(f *testing.F) {
	f.Add([]byte{17 + 5, 'h', 'e', 'l', 'l', 'o', 0x11, 0, 0}, uint16(5))
	f.Add([]byte{17 + 8, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 0xFC, 0, 0x11, 0, 0}, uint16(16))
	f.Fuzz(func(t *testing.T, in []byte, size uint16) {
		out, err := lzo1x(in, int(size))
		if err == nil && len(out) != int(size) {
			t.Fatalf("%d bytes of %d without an error", len(out), size)
		}
	})
}

func tinyKernel() []byte {
	return buildELF(true, 62, 2, 0x1000000, testSeg{typ: 1, vaddr: 0x1000000, paddr: 0x1000000, data: bytes.Repeat([]byte("kernel"), 50), memSize: 0x1000})
}

// tinyPayloads packs b in the formats for which there is a writer; LZO and
// bzip2 are there as their reference tools made them from the same bytes.
func tinyPayloads(f *testing.F, b []byte) [][]byte {
	var out [][]byte
	pack := func(open func(io.Writer) (io.WriteCloser, error)) {
		var buf bytes.Buffer
		w, err := open(&buf)
		if err != nil {
			f.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			f.Fatal(err)
		}
		if err := w.Close(); err != nil {
			f.Fatal(err)
		}
		out = append(out, buf.Bytes())
	}
	pack(func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil })
	pack(func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w, zstd.WithWindowSize(1<<10)) })
	pack(func(w io.Writer) (io.WriteCloser, error) { return lzma.WriterConfig{DictCap: 1 << 16}.NewWriter(w) })
	pack(func(w io.Writer) (io.WriteCloser, error) { return xz.WriterConfig{DictCap: 1 << 12}.NewWriter(w) })
	pack(func(w io.Writer) (io.WriteCloser, error) {
		z := lz4.NewWriter(w)
		return z, z.Apply(lz4.LegacyOption(true))
	})
	for _, golden := range []string{"iUxaTwANChoKEEAgoAlAAwkDAAABAACBpGsA+8gAAAAABHRpbnlRzQaFAAABrAAAAD4ZAoAYGX9FTEYCAQEA4AABAgA+ANQBmgBAADIBADjsBCcdAIAocAAraQAs9QEQLRwAwAADa2VybmVsIAAGFAARAAAAAAAA", "QlpoMTFBWSZTWcIuA7gAAL/9wHsQYAAABABBQwQCDRAAwAAgAEhKaU2po0eoaDQRVDRpkGQYQ1UYeaDDTLsxVaO9lNLRtHKAgRwjF7/CD+IP1kBsINxByEHPjAu5IpwoSGEXAdwA"} {
		g, err := base64.StdEncoding.DecodeString(golden)
		if err != nil {
			f.Fatal(err)
		}
		out = append(out, g)
	}
	for _, p := range out {
		var got bytes.Buffer
		if _, _, err := open(f, p).Unpack(&got); err != nil || !bytes.Equal(got.Bytes(), b) {
			f.Fatalf("%v seed: %v", packingOf(p), err)
		}
	}
	return out
}
