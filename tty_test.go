package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"testing"
)

func TestEscapes(t *testing.T) {
	for _, c := range []struct {
		name, typed, sent string
		left              bool
		help              bool
	}{
		{name: "plain", typed: "hello\n", sent: "hello\n"},
		{name: "leave", typed: "a\x01xb", sent: "ab", left: true},
		{name: "leave, upper case", typed: "\x01X", left: true},
		{name: "literal", typed: "a\x01\x01b", sent: "a\x01b"},
		{name: "help", typed: "\x01h", help: true},
		{name: "unknown", typed: "\x01q", sent: "q"},
		{name: "not armed for long", typed: "\x01qx", sent: "qx"},
	} {
		// Byte by byte, as a terminal gives them, and all at once.
		for _, r := range []io.Reader{strings.NewReader(c.typed), &oneByOne{c.typed}} {
			var help bytes.Buffer
			left := false
			e := newEscapes(&help, func() { left = true })
			e.Start(r)
			got, err := io.ReadAll(e)
			e.Wait()
			if err != nil || string(got) != c.sent || left != c.left || (help.Len() > 0) != c.help {
				t.Errorf("%s: sent %q, left %v, help %q, %v", c.name, got, left, help.String(), err)
			}
		}
	}
}

type oneByOne struct{ s string }

func (o *oneByOne) Read(p []byte) (int, error) {
	if o.s == "" {
		return 0, io.EOF
	}
	n := copy(p[:1], o.s)
	o.s = o.s[n:]
	return n, nil
}

// TestRegressLeaveUnread leaves a guest that reads nothing, as one that has
// not booted or that hangs.
func TestRegressLeaveUnread(t *testing.T) {
	r, w := io.Pipe()
	left := make(chan struct{})
	e := newEscapes(io.Discard, func() { close(left) })
	e.Start(r)
	go w.Write(append(bytes.Repeat([]byte("a"), maxTypeAhead/2), escapeKey, 'x'))
	<-left
	w.Close()
	e.Wait()
	if got, err := io.ReadAll(e); err != nil || len(got) != maxTypeAhead/2 {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// What is typed ahead is bounded, and nothing of it is lost.
func TestEscapes_TypeAhead(t *testing.T) {
	const size = 3 * maxTypeAhead
	r, w := io.Pipe()
	e := newEscapes(io.Discard, func() {})
	e.Start(r)
	go func() {
		w.Write(bytes.Repeat([]byte("a"), size))
		w.Close()
	}()
	total := 0
	for b := make([]byte, 1000); ; {
		n, err := e.Read(b)
		total += n
		e.mu.Lock()
		if held := len(e.typed); held > maxTypeAhead+4096 {
			t.Errorf("holds %d bytes", held)
		}
		e.mu.Unlock()
		if err == io.EOF {
			break
		}
	}
	if e.Wait(); total != size {
		t.Errorf("%d bytes of %d", total, size)
	}
}

// A reader and a full buffer must not keep Wait from returning.
func TestEscapes_Wait(t *testing.T) {
	wake, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	in, typist, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { wake.Close(); in.Close(); typist.Close() }()
	e := newEscapes(io.Discard, func() {})
	e.Start(&keys{f: in, wake: wake})
	typist.WriteString("ab")
	b := make([]byte, 8)
	if n, err := io.ReadAtLeast(e, b, 2); err != nil || string(b[:n]) != "ab" {
		t.Errorf("%q, %v", b[:n], err)
	}
	end.Close()
	e.Wait()
	if n, err := e.Read(b); n != 0 || err != io.EOF {
		t.Errorf("after Wait: %d, %v", n, err)
	}
	// What is typed afterwards is left for the next program.
	typist.WriteString("c")
	if n, err := in.Read(b); err != nil || string(b[:n]) != "c" {
		t.Errorf("left behind: %q, %v", b[:n], err)
	}
}
