package link

import (
	"errors"
	"io"
	"testing"

	"pgregory.net/rapid"
)

// TestFlowModel couples a sender's credit with a receiver's buffer through a
// delayed, in-order line and checks the promises that bound memory: never more
// buffered than Credit, never a violation between honest ends, and never stuck.
func TestFlowModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in, out := newInflow(), newOutflow()
		var line [][]byte // frames on their way
		var grants []int  // credit on its way back
		sent, got := 0, 0
		var held []byte
		heldCost := 0
		t.Repeat(map[string]func(*rapid.T){
			"send": func(t *rapid.T) {
				if out.credit <= HeaderSize {
					t.Skip("no credit")
				}
				room, ok := out.wait()
				if !ok || room < 1 || room > MaxPayload {
					t.Fatalf("wait: %d, %v", room, ok)
				}
				n := rapid.IntRange(1, room).Draw(t, "n")
				out.spend(n)
				line = append(line, make([]byte, n))
				sent += n
			},
			"deliver": func(t *rapid.T) {
				if len(line) == 0 {
					t.Skip("nothing on its way")
				}
				if _, err := in.push(line[0]); err != nil {
					t.Fatalf("an honest sender broke the protocol: %v", err)
				}
				line = line[1:]
			},
			"take": func(t *rapid.T) {
				if held != nil || len(in.buf) == 0 {
					t.Skip("nothing to take")
				}
				var err error
				if held, heldCost, err = in.take(); err != nil {
					t.Fatal(err)
				}
				got += len(held)
			},
			"done": func(t *rapid.T) {
				if held == nil {
					t.Skip("nothing held")
				}
				if n := in.done(held, heldCost); n > 0 {
					grants = append(grants, n)
				}
				held = nil
			},
			"grant": func(t *rapid.T) {
				if len(grants) == 0 {
					t.Skip("no credit on its way")
				}
				if err := out.grant(uint64(grants[0])); err != nil {
					t.Fatalf("an honest receiver broke the protocol: %v", err)
				}
				grants = grants[1:]
			},
			"": func(t *rapid.T) {
				if len(in.buf)+len(held) > Credit {
					t.Fatalf("%d bytes buffered", len(in.buf)+len(held))
				}
				if len(line) == 0 && held == nil && len(in.buf) == 0 && len(grants) == 0 {
					if sent != got {
						t.Fatalf("sent %d, got %d", sent, got)
					}
					if out.credit <= Credit/2 {
						t.Fatalf("all consumed, and the sender has %d of credit", out.credit)
					}
				}
			},
		})
	})
}

func TestInflowEnd(t *testing.T) {
	f := newInflow()
	f.push([]byte("last"))
	f.pushEOF()
	f.close()
	p, cost, err := f.take()
	if string(p) != "last" || err != nil {
		t.Fatalf("%q, %v", p, err)
	}
	f.done(p, cost)
	if _, _, err := f.take(); err != io.EOF {
		t.Errorf("%v", err)
	}
	if _, err := f.push([]byte("x")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("%v", err)
	}
	g := newInflow()
	g.close()
	if _, _, err := g.take(); err != io.ErrClosedPipe {
		t.Errorf("%v", err)
	}
	// A consumer that is gone costs no memory, and no violation.
	d := newInflow()
	d.push(make([]byte, 1000))
	d.drop()
	total := 0
	for range 100 {
		n, err := d.push(make([]byte, 60000))
		if err != nil {
			t.Fatal(err)
		}
		total += n
	}
	if d.buf != nil || total == 0 {
		t.Errorf("%d bytes kept, %d of credit returned", len(d.buf), total)
	}
}
