package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/moby/sys/mountinfo"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	readyTimeout = 30 * time.Second
	stopTimeout  = 15 * time.Second
)

// daemon is one running nixsnap and a connection to it.
type daemon struct {
	root        string
	holdsViews  bool // whether its snapshots may have rootfs views
	log         string
	command     *exec.Cmd
	exited      chan error // receives the end of command, once
	connection  *grpc.ClientConn
	snapshotter snapshots.Snapshotter
}

// startDaemon starts nixsnap on root and returns once it has said READY=1. Its socket and configuration lie beside
// root, where the suite removes them with it; its log outlives it.
func startDaemon(program, root string) (*daemon, error) {
	beside := filepath.Dir(root)
	socket := filepath.Join(beside, "nixsnap.sock")
	config := filepath.Join(beside, "nixsnap.toml")
	if err := os.WriteFile(config, []byte("[image_service]\nenable = false\n"), 0o600); err != nil {
		return nil, err
	}
	notify := filepath.Join(beside, "notify")
	notifications, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		return nil, err
	}
	defer notifications.Close()

	log := filepath.Join(os.Getenv("NIXSNAP_LOGS"), filepath.Base(beside)+".log")
	d := &daemon{root: root, log: log, exited: make(chan error, 1)}
	output, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer output.Close()
	d.command = exec.Command(program, "serve",
		"--config", config, "--address", socket, "--root", root, "--log-level", "debug")
	d.command.Env = append(os.Environ(), "NOTIFY_SOCKET="+notify)
	d.command.Stdout, d.command.Stderr = output, output
	if err := d.command.Start(); err != nil {
		return nil, err
	}
	go func() { d.exited <- d.command.Wait() }()

	if err := d.awaitReady(notifications); err != nil {
		return nil, d.abort(err)
	}
	d.connection, err = grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, d.abort(err)
	}
	d.snapshotter = proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(d.connection), "nix")
	return d, nil
}

func (d *daemon) awaitReady(notifications *net.UnixConn) error {
	ready := make(chan error, 1)
	go func() {
		message := make([]byte, 4096)
		for {
			n, err := notifications.Read(message) // ends with an error when startDaemon closes the socket
			if err != nil || bytes.Contains(message[:n], []byte("READY=1")) {
				ready <- err
				return
			}
		}
	}()
	select {
	case err := <-ready:
		return err
	case err := <-d.exited:
		d.exited <- err
		return fmt.Errorf("nixsnap ended before it was ready: %v", err)
	case <-time.After(readyTimeout):
		return fmt.Errorf("nixsnap was not ready within %v", readyTimeout)
	}
}

// stop ends the daemon as its service manager would, requires a clean exit, and takes down the rootfs views that it
// rightly leaves for snapshots still there. Any other mount left behind is an error, and so is a view where no
// snapshot stands on a nix layer.
func (d *daemon) stop() error {
	failures := []error{d.terminate()}
	if d.connection != nil {
		failures = append(failures, d.connection.Close())
	}
	return errors.Join(append(failures, d.unmount())...)
}

// abort stops a daemon that cannot be used, and returns why with the end of its log.
func (d *daemon) abort(why error) error {
	const most = 8000
	log, err := os.ReadFile(d.log)
	end := fmt.Errorf("end of nixsnap's log:\n%s", log[max(0, len(log)-most):])
	return errors.Join(why, d.stop(), err, end)
}

func (d *daemon) terminate() error {
	if err := d.command.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case err := <-d.exited:
		if err != nil {
			return fmt.Errorf("nixsnap ended with %w", err)
		}
		return nil
	case <-time.After(stopTimeout):
		err := d.command.Process.Kill()
		<-d.exited
		return errors.Join(fmt.Errorf("nixsnap did not end within %v of SIGTERM", stopTimeout), err)
	}
}

func (d *daemon) unmount() error {
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Dir(d.root)))
	if err != nil {
		return err
	}
	var failures []error
	views := filepath.Join(d.root, "views") + "/"
	for i := len(left) - 1; i >= 0; i-- { // the newest first
		point := left[i].Mountpoint
		if !d.holdsViews || !strings.HasPrefix(point, views) {
			failures = append(failures, fmt.Errorf("a mount was left at %s", point))
		}
		failures = append(failures, mount.UnmountAll(point, syscall.MNT_DETACH))
	}
	return errors.Join(failures...)
}
