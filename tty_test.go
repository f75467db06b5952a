package main

import (
	"bytes"
	"io"
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
			e := &escapes{r: r, help: &help, leave: func() { left = true }}
			got, err := io.ReadAll(e)
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
