package vmm

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic/hv"
)

// doorbells implements synic.Doorbell with ioeventfds: the hypercall page
// writes the connection id to the signal port, and KVM matches it against
// the registered ones without an exit to this process.
type doorbells struct {
	vm   *kvm.VM
	rung atomic.Uint64

	mu    sync.Mutex
	bells map[hv.ConnectionID]*doorbell
}

type doorbell struct {
	fd   int
	file *os.File
	done chan struct{}
}

func newDoorbells(vm *kvm.VM) *doorbells {
	return &doorbells{vm: vm, bells: map[hv.ConnectionID]*doorbell{}}
}

// Add has fn called for signals to id. Several signals may become one call.
func (d *doorbells) Add(id hv.ConnectionID, fn func()) error {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("doorbell of connection %#x: eventfd: %w", id, err)
	}
	if err := d.assign(id, fd, false); err != nil {
		unix.Close(fd)
		return fmt.Errorf("doorbell of connection %#x: %w", id, err)
	}
	b := &doorbell{fd: fd, file: os.NewFile(uintptr(fd), "doorbell"), done: make(chan struct{})}
	d.mu.Lock()
	d.bells[id] = b
	d.mu.Unlock()
	go func() {
		defer close(b.done)
		var count [8]byte
		for {
			// The file is in the runtime's poller: this parks the goroutine,
			// and Close ends it.
			if _, err := b.file.Read(count[:]); err != nil {
				return
			}
			d.rung.Add(binary.NativeEndian.Uint64(count[:]))
			fn()
		}
	}()
	return nil
}

// Remove ends the calls for id; none runs when it returns.
func (d *doorbells) Remove(id hv.ConnectionID) {
	d.mu.Lock()
	b := d.bells[id]
	delete(d.bells, id)
	d.mu.Unlock()
	if b == nil {
		return
	}
	d.assign(id, b.fd, true)
	b.file.Close()
	<-b.done
}

// close removes all.
func (d *doorbells) close() {
	d.mu.Lock()
	var ids []hv.ConnectionID
	for id := range d.bells {
		ids = append(ids, id)
	}
	d.mu.Unlock()
	for _, id := range ids {
		d.Remove(id)
	}
}

func (d *doorbells) assign(id hv.ConnectionID, fd int, deassign bool) error {
	e := kvm.IOEvent{Addr: signalPort, Len: 4, PIO: true, Match: true, Data: uint64(id), FD: fd}
	if deassign {
		return d.vm.RemoveIOEventFD(e)
	}
	return d.vm.IOEventFD(e)
}
