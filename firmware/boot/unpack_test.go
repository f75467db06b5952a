package boot

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

// formats names the files in testdata that hold sampleKernel, packed by
// gzip -9, bzip2 -9, lzma -9, xz --check=crc32 --x86 --lzma2=dict=32MiB,
// lzop -9, lz4 -l -9 and zstd -22 --ultra: what the kernel's build runs.
var formats = map[string]string{
	"gzip": "sample.gz", "bzip2": "sample.bz2", "LZMA": "sample.lzma", "xz": "sample.xz",
	"LZO": "sample.lzo", "LZ4": "sample.lz4", "zstd": "sample.zst",
}

func TestUnpackEveryFormat(t *testing.T) {
	want := sampleKernel()
	for format, file := range formats {
		packed := testdata(t, file)
		z := defaultBz(packed)
		if format != "gzip" { // whose own trailer has the size
			z.trailer = size(want)
		}
		var got bytes.Buffer
		n, name, err := open(t, z.bytes()).Unpack(&got)
		if err != nil || n != int64(len(want)) || name != format {
			t.Errorf("%s: %d bytes of %d, %q, %v", format, n, len(want), name, err)
		}
		if !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: contents differ", format)
		}
		got.Reset()
		im := open(t, packed)
		if im.Kind != Compressed {
			t.Errorf("%s alone: kind %v", format, im.Kind)
			continue
		}
		if _, _, err := im.Unpack(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s alone: %v", format, err)
		}
	}
}

func TestUnpackUncompressedPayload(t *testing.T) {
	want := sampleKernel()
	var got bytes.Buffer
	if _, name, err := open(t, defaultBz(want).bytes()).Unpack(&got); err != nil || name != "uncompressed" || !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%q, %v", name, err)
	}
}

// TestUnpackSizeBoundary: init_size bounds the output exactly.
func TestUnpackSizeBoundary(t *testing.T) {
	want := sampleKernel()
	for format, file := range formats {
		for _, spare := range []int{0, -1} {
			z := defaultBz(testdata(t, file))
			z.initSize = uint32(len(want) + spare)
			if format != "gzip" {
				z.trailer = size(want)
			}
			var got bytes.Buffer
			_, _, err := open(t, z.bytes()).Unpack(&got)
			if spare == 0 && err != nil {
				t.Errorf("%s: exact limit: %v", format, err)
			}
			if spare < 0 && (!errors.Is(err, errTooLarge) || got.Len() > len(want)-1) {
				t.Errorf("%s: limit one short: %v, %d bytes written", format, err, got.Len())
			}
		}
	}
}

// TestUnpackBomb: a small file of zeros does not become gigabytes.
func TestUnpackBomb(t *testing.T) {
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bomb := enc.EncodeAll(append([]byte("\x7fELF"), make([]byte, 64<<20)...), nil)
	z := defaultBz(bomb)
	z.initSize = 1 << 20
	z.trailer = size(nil)
	n, _, err := open(t, z.bytes()).Unpack(discard{})
	if !errors.Is(err, errTooLarge) || n > 1<<20 {
		t.Errorf("%d bytes, %v", n, err)
	}
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }

// TestUnpackDamaged cuts and flips each format everywhere: an error or the
// right contents, never anything else.
func TestUnpackDamaged(t *testing.T) {
	want := sampleKernel()
	for format, file := range formats {
		packed := testdata(t, file)
		trailer := size(want)
		if format == "gzip" {
			trailer = nil
		}
		for cut := 1; cut < len(packed); cut += len(packed)/19 + 1 {
			z := defaultBz(packed[:cut])
			z.trailer = trailer
			var got bytes.Buffer
			im, err := New(bytes.NewReader(z.bytes()), int64(len(z.bytes())), "k")
			if err == nil {
				_, _, err = im.Unpack(&got)
			}
			// The last bytes of some formats are a checksum or an end mark
			// that need not be read.
			if err == nil && !bytes.Equal(got.Bytes(), want) {
				t.Errorf("%s cut at %d of %d: no error", format, cut, len(packed))
			}
			if err != nil && strings.ContainsAny(err.Error(), "\n") {
				t.Errorf("%s cut at %d: error of several lines: %v", format, cut, err)
			}
		}
		for at := 0; at < len(packed); at += len(packed)/19 + 1 {
			bad := bytes.Clone(packed)
			bad[at] ^= 0x55
			z := defaultBz(bad)
			z.trailer = trailer
			var got bytes.Buffer
			_, _, _ = open(t, z.bytes()).Unpack(&got)
			if got.Len() > int(z.initSize) {
				t.Errorf("%s with byte %d flipped: %d bytes", format, at, got.Len())
			}
		}
	}
}

func TestUnpackErrors(t *testing.T) {
	good := sampleKernel()
	zst := testdata(t, "sample.zst")
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	script := enc.EncodeAll([]byte("#!/bin/sh\nexit 0\n"), nil)
	tiny := enc.EncodeAll([]byte("\x7fE"), nil)
	huge := bytes.Clone(testdata(t, "sample.lzma"))
	le.PutUint32(huge[1:], 1<<31)
	mod := func(f func(*bz)) []byte {
		z := defaultBz(zst)
		z.trailer = size(good)
		f(&z)
		return z.bytes()
	}
	cutFile := mod(func(*bz) {})
	for name, tc := range map[string]struct {
		file []byte
		want string
	}{
		"wrong size":      {mod(func(z *bz) { z.trailer = size(good[1:]) }), "but the image says"},
		"no payload":      {mod(func(z *bz) { z.payload, z.trailer = nil, nil }), "--boot=bzimage"},
		"old protocol":    {mod(func(z *bz) { z.version = 0x0207 }), "--boot=bzimage"},
		"unknown packing": {mod(func(z *bz) { z.payload = []byte("\x11\x22\x33\x44 and so on") }), "--boot=bzimage"},
		"not an ELF":      {mod(func(z *bz) { z.payload, z.trailer = script, size(make([]byte, 17)) }), "not an ELF"},
		"tiny":            {mod(func(z *bz) { z.payload, z.trailer = tiny, size(make([]byte, 2)) }), "not an ELF"},
		"huge dictionary": {mod(func(z *bz) { z.payload = huge }), "dictionary"},
		"cut file":        {cutFile[:len(cutFile)-100], "cut short"},
		"ELF":             {good, "nothing to unpack"},
	} {
		im, err := New(bytes.NewReader(tc.file), int64(len(tc.file)), "vmlinuz")
		if err == nil {
			_, _, err = im.Unpack(discard{})
		}
		oneLine(t, name, err, "vmlinuz: ", tc.want)
	}
}

// oneLine wants an error of one line that starts with the name and says want.
func oneLine(t *testing.T, name string, err error, prefix, want string) {
	t.Helper()
	if err == nil || !strings.HasPrefix(err.Error(), prefix) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
		t.Errorf("%s: error %v, want one line with %q", name, err, want)
	}
}

func TestUnpackFile(t *testing.T) {
	want := sampleKernel()
	z := defaultBz(testdata(t, "sample.lz4"))
	z.trailer = size(want)
	for name, contents := range map[string][]byte{"vmlinuz": z.bytes(), "vmlinux": want, "vmlinux.gz": testdata(t, "sample.gz")} {
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, contents, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var got bytes.Buffer
		if err := Unpack(f, &got); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLZOInstructions holds one stream per instruction of LZO1X.
func TestLZOInstructions(t *testing.T) {
	end := []byte{0x11, 0, 0}
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	abc := bytes.Repeat([]byte("abcdefgh"), 300) // 2400 bytes
	// A first byte of 17+n copies n literals; a run of 0, zeros and a rest
	// copies more.
	long := func(b []byte) []byte {
		n := len(b) - 18
		out := []byte{0}
		for ; n > 255; n -= 255 {
			out = append(out, 0)
		}
		return cat(out, []byte{byte(n)}, b)
	}
	for name, tc := range map[string]struct{ in, want []byte }{
		"first literals":       {cat([]byte{17 + 5}, []byte("hello"), end), []byte("hello")},
		"first literals, few":  {cat([]byte{17 + 2}, []byte("hi"), end), []byte("hi")},
		"literal run":          {cat([]byte{1}, []byte("hell"), end), []byte("hell")},
		"long literal run":     {cat(long(abc), end), abc},
		"1LL match":            {cat([]byte{17 + 8}, abc[:8], []byte{0xFC, 0}, end), []byte("abcdefghabcdefgh")},
		"1LL with literals":    {cat([]byte{17 + 8}, abc[:8], []byte{0x80 | 7<<2 | 2, 0}, []byte("xy"), end), []byte("abcdefghabcdexy")},
		"01L match":            {cat([]byte{17 + 8}, abc[:8], []byte{0x40 | 7<<2, 0}, end), []byte("abcdefghabc")},
		"001 match":            {cat([]byte{17 + 8}, abc[:8], []byte{0x20 | 4, 7 << 2, 0}, end), []byte("abcdefghabcdef")},
		"001 match, long":      {cat([]byte{17 + 8}, abc[:8], []byte{0x20, 0, 2, 7 << 2, 0}, end), append([]byte("abcdefgh"), abc[:31+255+2+2]...)},
		"2 bytes after few":    {cat([]byte{17 + 8}, abc[:8], []byte{0x40 | 7<<2 | 1, 0, 'x'}, []byte{0 | 3<<2, 0}, end), []byte("abcdefghabcxha"[:12] + "ab")},
		"3 bytes after many":   {cat(long(abc[:2064]), []byte{1 << 2, 0}, end), append(bytes.Clone(abc[:2064]), abc[2064-2050:2064-2050+3]...)},
		"0001 match, far back": {cat(long(bigText()), []byte{0x10 | 4, 1 << 2, 0}, end), append(bigText(), bigText()[len(bigText())-16385:][:6]...)},
	} {
		got, err := lzo1x(tc.in, len(tc.want))
		if err != nil || !bytes.Equal(got, tc.want) {
			n := min(len(got), 40)
			t.Errorf("%s: %v, %d bytes %q, want %d", name, err, len(got), got[:n], len(tc.want))
		}
		for cut := range min(len(tc.in), 64) {
			if _, err := lzo1x(tc.in[:len(tc.in)-1-cut], len(tc.want)); err == nil {
				t.Errorf("%s: cut by %d bytes: no error", name, cut+1)
			}
		}
		if _, err := lzo1x(tc.in, len(tc.want)+1); err == nil {
			t.Errorf("%s: a byte more asked for: no error", name)
		}
		if _, err := lzo1x(tc.in, len(tc.want)-1); err == nil {
			t.Errorf("%s: a byte less asked for: no error", name)
		}
	}
	for name, in := range map[string][]byte{
		"empty": {}, "before the start": {17 + 4, 'a', 'b', 'c', 'd', 0x80, 0xFF}, "zeros only": {0, 0, 0, 0},
	} {
		if _, err := lzo1x(in, 100); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func bigText() []byte {
	b := make([]byte, 20000)
	for i := range b {
		b[i] = byte(i * i >> 7)
	}
	return b
}

// TestRealKernels unpacks the kernels that HVPOST_TEST_KERNELS names, a
// colon-separated list of bzImages, and reads what comes out.
func TestRealKernels(t *testing.T) {
	list := os.Getenv("HVPOST_TEST_KERNELS")
	if list == "" {
		t.Skip("NO REAL KERNEL UNPACKED: set HVPOST_TEST_KERNELS to a colon-separated list of bzImages")
	}
	for _, path := range filepath.SplitList(list) {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		im, err := Open(f)
		if err != nil {
			t.Fatal(err)
		}
		out, err := os.Create(filepath.Join(t.TempDir(), "vmlinux"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		start := time.Now()
		n, format, err := im.Unpack(out)
		took := time.Since(start)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %s, %s, %d MiB in %v, %.0f MB/s", path, im.Setup.KernelVersion, format, n>>20, took, float64(n)/1e6/took.Seconds())
		v, err := Open(out)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := v.Default(); err != nil || p != Linux64 || !v.HasPVH {
			t.Errorf("%s: protocol %v, PVH %v, %v", path, p, v.HasPVH, err)
		}
		mem, m := machine(t, 512)
		l, err := v.Load(mem, Linux64, Params{Map: m, Cmdline: "console=ttyS0", Setup: im.Setup})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(im.Setup.KernelVersion, "6.") {
			t.Errorf("%s: version %q", path, im.Setup.KernelVersion)
		}
		if uint64(l.Kernel.Base) != im.Setup.PrefAddress {
			t.Errorf("%s: loaded at %v, prefers %#x", path, l.Kernel.Base, im.Setup.PrefAddress)
		}
	}
}
