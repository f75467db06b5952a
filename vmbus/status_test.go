package vmbus_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmbus/vmbustest"
)

// The shape that other programs read.
func TestStatusJSON(t *testing.T) {
	d := echo(1)
	e, c := booted(t, d)
	e.check(c.Open(e.ctx, vmbustest.OpenOptions{}))
	b, err := json.Marshal(e.srv.Status())
	e.check(err)
	want := `{"connected":true,"version":"5.3","channels":[{"name":"echo","type":"ba6163d9-04a1-4d29-b605-72e2ffb1dc7f",` +
		`"instance":"00000001-0000-0000-0000-0000000000aa","relid":1,"state":"open"}]}`
	if string(b) != want {
		t.Errorf("%s\nwant\n%s", b, want)
	}
}

// A guest that repeats a mistake fills no log, and hides no other mistake.
func TestLogIsBounded(t *testing.T) {
	d := quiet(1)
	e, _ := booted(t, d)
	start := time.Now()
	for range 2000 {
		e.check(e.g.Post(e.ctx, make([]byte, 3)))
	}
	e.check(e.g.Post(e.ctx, make([]byte, 8)))
	e.sync()
	took := int(time.Since(start)/time.Second) + 1
	e.mu.Lock()
	lines, other := 0, false
	for _, l := range e.logs {
		if strings.Contains(l, "channel message of %d bytes") {
			lines++
		}
		other = other || strings.Contains(l, "%v: ignored")
	}
	e.mu.Unlock()
	if lines == 0 || lines > 10+took {
		t.Errorf("%d lines for 2000 mistakes in %d s", lines, took)
	}
	if !other {
		t.Error("another mistake was not logged")
	}
	if st := e.srv.Status(); st.Channels[0].State != vmbus.StateOffered {
		t.Errorf("%+v", st)
	}
}
