package ring

import "testing"

// A model of the two ends, one atomic access per step, small enough to look at
// every interleaving. It mirrors Reader.Next/Commit/Unmask/Mask and
// Writer.Put/Publish/Await: if the order of accesses there changes, it must
// change here.
//
// The ring holds modelRoom units; the writer sends packets of one and of two
// units in turn, each published on its own. Both ends sleep only where the
// protocol lets them.
const (
	modelRoom    = 3 // free units of an empty ring; one always stays free
	modelPackets = 6
)

type model struct {
	// Shared words. Indices count units and do not wrap.
	write, read   uint8
	mask, pending uint8
	// Wake-up tokens, as channels of capacity one.
	data, room bool

	// The writer.
	wpc              uint8
	sent             uint8
	wIn, wPub, wSeen uint8 // in, published, out as last seen
	// The reader.
	rpc               uint8
	got               uint8
	rOut, rPub, rSeen uint8
	freed, pend       uint8
}

func packetUnits(n uint8) uint8 { return 1 + n%2 }

// stepWriter makes the writer's next access; false: it sleeps.
func (m model) stepWriter() (model, bool) {
	n := packetUnits(m.sent)
	fits := func() bool { return modelRoom-(m.wIn-m.wSeen) > n }
	switch m.wpc {
	case 0: // Put with what is known
		if m.sent == modelPackets {
			return m, false
		}
		m.wpc = 1
		if fits() {
			m.wpc = 3
		}
	case 1: // Put looks
		m.wSeen = m.read
		m.wpc = 2
		if fits() {
			m.wpc = 3
		}
	case 2: // Await: arm
		m.pending = min(n+1, modelRoom-1)
		m.wpc = 6
	case 6: // Await: look
		m.wSeen = m.read
		m.wpc = 7
		if fits() {
			m.wpc = 3
		}
	case 7: // sleep
		if !m.room {
			return m, false
		}
		m.room = false
		m.wpc = 0
	case 3: // Put disarms and writes the data, which nobody sees yet
		m.pending = 0
		m.wIn += n
		m.wpc = 4
	case 4: // Publish: write index
		m.write = m.wIn
		m.wpc = 5
	case 5: // Publish: mask
		m.wpc = 8
		if m.mask != 0 {
			m.wpc = 9
		}
	case 8: // Publish: read index, and the signal
		if m.read == m.wPub {
			m.data = true
		}
		m.wpc = 9
	case 9:
		m.wPub = m.wIn
		m.sent++
		m.wpc = 0
	}
	return m, true
}

// stepReader makes the reader's next access; false: it sleeps.
func (m model) stepReader() (model, bool) {
	switch m.rpc {
	case 0: // Next with what is known
		m.rpc = 1
		if m.rOut != m.rSeen {
			m.rOut += packetUnits(m.got)
			m.got++
			m.rpc = 0
		}
	case 1: // Commit: read index
		if m.rOut == m.rPub {
			m.rpc = 4
			break
		}
		m.freed = m.rOut - m.rPub
		m.rPub = m.rOut
		m.read = m.rOut
		m.rpc = 2
	case 2: // Commit: pending
		m.pend = m.pending
		m.rpc = 3
		if m.pend == 0 {
			m.rpc = 4
		}
	case 3: // Commit: write index, and the signal
		free := modelRoom - (m.write - m.rOut)
		if int(free)-int(m.freed) <= int(m.pend) && free >= m.pend {
			m.room = true
		}
		m.rpc = 4
	case 4: // look
		m.rSeen = m.write
		m.rpc = 5
		if m.rSeen != m.rOut {
			m.rpc = 8
		}
	case 8: // there is work: mask
		m.mask = 1
		m.rpc = 0
	case 5: // nothing: unmask
		m.mask = 0
		m.rpc = 6
	case 6: // look again
		m.rSeen = m.write
		m.rpc = 7
		if m.rSeen != m.rOut {
			m.rpc = 8
		}
	case 7: // sleep
		if !m.data {
			return m, false
		}
		m.data = false
		m.rpc = 0
	}
	return m, true
}

// No interleaving ends with both asleep and packets left, and none delivers a
// packet before it was published.
func TestModelNoLostWakeUp(t *testing.T) {
	start := model{}
	seen := map[model]bool{start: true}
	todo := []model{start}
	ends := 0
	for len(todo) > 0 {
		m := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		if m.rOut > m.write || m.wIn-m.read > modelRoom-1 {
			t.Fatalf("read ahead or overwritten: %+v", m)
		}
		moved := false
		for _, step := range []func() (model, bool){m.stepWriter, m.stepReader} {
			next, ok := step()
			if !ok {
				continue
			}
			moved = true
			if !seen[next] {
				seen[next] = true
				todo = append(todo, next)
			}
		}
		if moved {
			continue
		}
		ends++
		if m.sent != modelPackets || m.got != modelPackets {
			t.Fatalf("both asleep after %d of %d packets: %+v", m.got, m.sent, m)
		}
	}
	t.Logf("%d states, %d ends", len(seen), ends)
	if ends == 0 || len(seen) < 1000 {
		t.Error("the model did not run")
	}
}
