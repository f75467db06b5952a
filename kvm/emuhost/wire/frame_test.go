package wire

import (
	"bytes"
	"errors"
	"io"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

func TestFrameGolden(t *testing.T) {
	for _, tc := range []struct {
		name string
		f    Frame
		want string
	}{
		{"kill", Frame{Session: 7, Type: TypeKill}, "\x00\x00\x00\x00\x07\x00\x00\x00\x0a\x00\x00\x00"},
		{"data", Frame{Session: 0x01020304, Type: TypeData, Stream: Stderr, Payload: []byte("hi")}, "\x02\x00\x00\x00\x04\x03\x02\x01\x04\x02\x00\x00hi"},
		{"credit", Credit(1, Stdout, 0x10000), "\x04\x00\x00\x00\x01\x00\x00\x00\x06\x01\x00\x00\x00\x00\x01\x00"},
		{"signal", Signal(1, 15), "\x04\x00\x00\x00\x01\x00\x00\x00\x07\x00\x00\x00\x0f\x00\x00\x00"},
		{"resize", Resize(1, 24, 80), "\x04\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00\x18\x00\x50\x00"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var b bytes.Buffer
			if err := NewWriter(&b).Write(tc.f); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tc.want, b.String()); diff != "" {
				t.Errorf("bytes (-want +got):\n%s", diff)
			}
			got, err := NewReader(&b).Next()
			if err != nil {
				t.Fatal(err)
			}
			if got.Session != tc.f.Session || got.Type != tc.f.Type || got.Stream != tc.f.Stream || !bytes.Equal(got.Payload, tc.f.Payload) {
				t.Errorf("read back %v, wrote %v", got, tc.f)
			}
		})
	}
}

func TestReaderRefuses(t *testing.T) {
	for _, tc := range []struct {
		name, in string
		want     error
	}{
		{"nothing", "", io.EOF},
		{"half a header", "\x00\x00\x00\x00\x07", io.ErrUnexpectedEOF},
		{"half a payload", "\x02\x00\x00\x00\x04\x03\x02\x01\x04\x02\x00\x00h", io.ErrUnexpectedEOF},
		{"no payload", "\x02\x00\x00\x00\x04\x03\x02\x01\x04\x02\x00\x00", io.ErrUnexpectedEOF},
		{"length", "\xff\xff\xff\xff\x04\x03\x02\x01\x04\x02\x00\x00", ErrFrame},
		{"one too long", "\xf5\x7f\x00\x00\x04\x03\x02\x01\x04\x02\x00\x00", ErrFrame},
		{"type zero", "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", ErrFrame},
		{"type beyond", "\x00\x00\x00\x00\x00\x00\x00\x00\x0e\x00\x00\x00", ErrFrame},
		{"stream", "\x00\x00\x00\x00\x00\x00\x00\x00\x04\x03\x00\x00", ErrFrame},
		{"reserved", "\x00\x00\x00\x00\x00\x00\x00\x00\x04\x00\x01\x00", ErrFrame},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := NewReader(bytes.NewReader([]byte(tc.in))).Next(); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// TestWriterIsAtomic has many goroutines write at once: no frame may be torn, and the order of each is kept.
func TestWriterIsAtomic(t *testing.T) {
	r, w := io.Pipe()
	fw := NewWriter(w)
	const writers, frames = 8, 200
	var wg sync.WaitGroup
	for id := range writers {
		wg.Go(func() {
			for i := range frames {
				p := bytes.Repeat([]byte{byte(i)}, id*100+1)
				if err := fw.Write(Frame{Session: uint32(id), Type: TypeData, Payload: p}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	go func() {
		wg.Wait()
		w.Close()
	}()
	next := [writers]int{}
	fr := NewReader(r)
	for {
		f, err := fr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		want := bytes.Repeat([]byte{byte(next[f.Session])}, int(f.Session)*100+1)
		if !bytes.Equal(f.Payload, want) {
			t.Fatalf("session %d: frame %d is %v", f.Session, next[f.Session], f.Payload)
		}
		next[f.Session]++
	}
	for id, n := range next {
		if n != frames {
			t.Errorf("session %d: %d frames, want %d", id, n, frames)
		}
	}
}

func TestWriterErrorStays(t *testing.T) {
	r, w := io.Pipe()
	r.CloseWithError(io.ErrNoProgress)
	fw := NewWriter(w)
	for range 2 {
		if err := fw.Write(Frame{Type: TypeKill}); err != io.ErrNoProgress {
			t.Errorf("got %v, want %v", err, io.ErrNoProgress)
		}
	}
}

func TestFrameRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		gen := rapid.Custom(func(t *rapid.T) Frame {
			return Frame{
				Session: rapid.Uint32().Draw(t, "session"),
				Type:    Type(rapid.IntRange(1, int(typeEnd)-1).Draw(t, "type")),
				Stream:  Stream(rapid.IntRange(0, int(streamEnd)-1).Draw(t, "stream")),
				Payload: rapid.SliceOfN(rapid.Byte(), 0, 300).Draw(t, "payload"),
			}
		})
		fs := rapid.SliceOfN(gen, 0, 20).Draw(t, "frames")
		var b bytes.Buffer
		w := NewWriter(&b)
		for _, f := range fs {
			if err := w.Write(f); err != nil {
				t.Fatal(err)
			}
		}
		r := NewReader(&b)
		for _, want := range fs {
			got, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("frame (-want +got):\n%s", diff)
			}
		}
		if _, err := r.Next(); err != io.EOF {
			t.Fatalf("after the last frame: %v", err)
		}
	})
}

func FuzzReader(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x04\x03\x02\x01\x04\x02\x00\x00hi"))
	f.Add([]byte("\x04\x00\x00\x00\x01\x00\x00\x00\x06\x01\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x07\x00\x00\x00\x0a\x00\x00\x00"))
	f.Add([]byte("\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := NewReader(bytes.NewReader(in))
		var out bytes.Buffer
		w := NewWriter(&out)
		for {
			f, err := r.Next()
			if err != nil {
				break
			}
			// Decoders of payloads must not panic, whatever the type says.
			_, _ = f.Uint32()
			_, _, _ = f.Size()
			var e Exit
			_ = f.Decode(&e)
			if err := w.Write(f); err != nil {
				t.Fatal(err)
			}
		}
		// What is a frame is written as it was read.
		if !bytes.HasPrefix(in, out.Bytes()) {
			t.Errorf("read %x, wrote %x", in, out.Bytes())
		}
	})
}
