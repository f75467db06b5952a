package wire

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// text draws any bytes but zero, as execve takes them.
var text = rapid.Custom(func(t *rapid.T) string {
	return string(rapid.SliceOfN(rapid.ByteRange(1, 255), 0, 40).Draw(t, "bytes"))
})

func TestRequestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := &Request{
			Argv:   rapid.SliceOfN(text, 1, 10).Draw(t, "argv"),
			Env:    rapid.SliceOfN(text, 0, 10).Draw(t, "env"),
			Dir:    text.Draw(t, "dir"),
			UID:    rapid.Uint32().Draw(t, "uid"),
			GID:    rapid.Uint32().Draw(t, "gid"),
			Groups: rapid.SliceOfN(rapid.Uint32(), 0, 5).Draw(t, "groups"),
			Umask:  rapid.Uint32Range(0, 0o777).Draw(t, "umask"),
			Merge:  rapid.Bool().Draw(t, "merge"),
			TTY:    rapid.Bool().Draw(t, "tty"),
			Rows:   rapid.Uint16().Draw(t, "rows"),
			Cols:   rapid.Uint16().Draw(t, "cols"),
		}
		// Through the frames, as it travels.
		var b []byte
		fs := Parts(9, want.Encode())
		for i, f := range fs {
			if f.Session != 9 || f.Type != TypeExec || (f.Stream == LastPart) != (i == len(fs)-1) {
				t.Fatalf("part %d of %d: %v", i, len(fs), f)
			}
			b = append(b, f.Payload...)
		}
		got, err := DecodeRequest(b)
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range []*[]string{&want.Env, &got.Env} {
			if len(*l) == 0 {
				*l = nil
			}
		}
		if len(want.Groups) == 0 {
			want.Groups = nil
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("request (-want +got):\n%s", diff)
		}
	})
}

func TestPartsOfLargeRequest(t *testing.T) {
	q := &Request{Argv: []string{"x"}, Env: []string{strings.Repeat("e", 3*MaxPayload)}, Dir: "/"}
	fs := Parts(1, q.Encode())
	if len(fs) != 4 {
		t.Fatalf("%d parts, want 4", len(fs))
	}
	var b []byte
	for _, f := range fs {
		b = append(b, f.Payload...)
	}
	got, err := DecodeRequest(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(q, got); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
}

func TestDecodeRequestRefuses(t *testing.T) {
	good := (&Request{Argv: []string{"true"}, Env: []string{"A=b"}, Dir: "/"}).Encode()
	for _, tc := range []struct {
		name string
		in   []byte
	}{
		{"nothing", nil},
		{"no command", (&Request{Dir: "/"}).Encode()},
		{"zero byte", (&Request{Argv: []string{"a\x00b"}}).Encode()},
		{"trailing byte", append(slices.Clone(good), 0)},
		{"list longer than what follows", []byte("\xff\xff\x03\x01a")},
		{"list longer than allowed", []byte("\xff\xff\xff\xff\x0f")},
		{"string longer than what follows", []byte("\x01\xff\xff\xff\xff\x0fa")},
		{"number of 11 bytes", []byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")},
		{"umask", (&Request{Argv: []string{"a"}, Umask: 0o1000}).Encode()},
		{"size", make([]byte, MaxRequest+1)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if q, err := DecodeRequest(tc.in); !errors.Is(err, ErrRequest) {
				t.Errorf("got %v, %v, want %v", q, err, ErrRequest)
			}
		})
	}
	for n := range good {
		if _, err := DecodeRequest(good[:n]); !errors.Is(err, ErrRequest) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
}

func TestJSONFits(t *testing.T) {
	// The worst text for JSON: six bytes for each.
	f := JSON(1, TypeExit, Exit{Code: 1, Error: Cut(strings.Repeat("\x01", 1<<20))})
	if len(f.Payload) > MaxPayload {
		t.Errorf("payload of %d bytes", len(f.Payload))
	}
	var e Exit
	if err := f.Decode(&e); err != nil || e.Code != 1 || !strings.HasSuffix(e.Error, "...") {
		t.Errorf("decoded %d bytes of text, code %d, %v", len(e.Error), e.Code, err)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add((&Request{Argv: []string{"sh", "-c", "exit 3"}, Env: []string{"PATH=/bin", "X=\xff"}, Dir: "/tmp", Groups: []uint32{1, 2}, TTY: true}).Encode())
	f.Add([]byte("\xff\xff\x03\x01a"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, in []byte) {
		q, err := DecodeRequest(in)
		if err != nil {
			if !errors.Is(err, ErrRequest) {
				t.Fatalf("error %v is no ErrRequest", err)
			}
			return
		}
		again, err := DecodeRequest(q.Encode())
		if err != nil {
			t.Fatalf("encoded again: %v", err)
		}
		if diff := cmp.Diff(q, again); diff != "" {
			t.Errorf("encoded again (-want +got):\n%s", diff)
		}
	})
}
