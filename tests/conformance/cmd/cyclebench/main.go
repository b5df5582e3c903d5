// cyclebench measures how many snapshot life cycles a snapshotter serves a second.
//
// A cycle is Prepare, Mounts, Commit, Stat and Remove of a snapshot without parent. It speaks the snapshots API to any
// socket that serves it: a proxy snapshotter's own, or containerd's with -snapshotter overlayfs. One line of JSON:
//
//	{"snapshotter":"nix","clients":4,"cycles":1234,"seconds":2.0,"cycles_per_second":617,"median_ms":6.1,"p99_ms":9.8}
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sort"
	"sync"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// gcRoot keeps containerd's garbage collector off a committed snapshot until the cycle removes it.
var gcRoot = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "cyclebench"})

type result struct {
	Snapshotter     string  `json:"snapshotter"`
	Clients         int     `json:"clients"`
	Cycles          int     `json:"cycles"`
	Seconds         float64 `json:"seconds"`
	CyclesPerSecond float64 `json:"cycles_per_second"`
	MedianMS        float64 `json:"median_ms"`
	P99MS           float64 `json:"p99_ms"`
}

func main() {
	address := flag.String("address", "", "socket that serves containerd's snapshots API")
	snapshotter := flag.String("snapshotter", "nix", "snapshotter's name, which only containerd's own socket heeds")
	clients := flag.Int("clients", 1, "connections at work at the same time")
	seconds := flag.Float64("seconds", 3, "how long to measure, after a tenth of that to warm up")
	flag.Parse()
	if *address == "" || *clients < 1 || *seconds <= 0 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}
	duration := time.Duration(*seconds * float64(time.Second))
	if _, err := measure(*address, *snapshotter, *clients, duration/10); err != nil {
		log.Fatal(err)
	}
	measured, err := measure(*address, *snapshotter, *clients, duration)
	if err != nil {
		log.Fatal(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(measured); err != nil {
		log.Fatal(err)
	}
}

// measure lets clients cycle, each on a connection of its own, until duration has passed.
func measure(address, snapshotter string, clients int, duration time.Duration) (result, error) {
	var (
		group     sync.WaitGroup
		latencies = make([][]time.Duration, clients)
		failures  = make([]error, clients)
		started   = time.Now()
	)
	for client := range clients {
		group.Go(func() {
			latencies[client], failures[client] = cycleUntil(address, snapshotter, client, started.Add(duration))
		})
	}
	group.Wait()
	elapsed := time.Since(started).Seconds()

	var all []time.Duration
	for client := range clients {
		if failures[client] != nil {
			return result{}, failures[client]
		}
		all = append(all, latencies[client]...)
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	return result{
		Snapshotter:     snapshotter,
		Clients:         clients,
		Cycles:          len(all),
		Seconds:         elapsed,
		CyclesPerSecond: float64(len(all)) / elapsed,
		MedianMS:        quantile(all, 0.50),
		P99MS:           quantile(all, 0.99),
	}, nil
}

// quantile of sorted latencies, in milliseconds; zero of none.
func quantile(sorted []time.Duration, q float64) float64 {
	if len(sorted) == 0 {
		return 0
	}
	return float64(sorted[int(q*float64(len(sorted)-1))]) / float64(time.Millisecond)
}

func cycleUntil(address, snapshotter string, client int, deadline time.Time) ([]time.Duration, error) {
	connection, err := grpc.NewClient("unix://"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	defer connection.Close()
	service := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(connection), snapshotter)
	ctx := namespaces.WithNamespace(context.Background(), "cyclebench")

	var latencies []time.Duration
	for number := 0; time.Now().Before(deadline); number++ {
		started := time.Now()
		if err := cycle(ctx, service, fmt.Sprintf("cyclebench-%d-%d-%d", os.Getpid(), client, number)); err != nil {
			return nil, err
		}
		latencies = append(latencies, time.Since(started))
	}
	return latencies, nil
}

func cycle(ctx context.Context, service snapshots.Snapshotter, name string) error {
	key := name + "-active"
	if _, err := service.Prepare(ctx, key, "", gcRoot); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	if _, err := service.Mounts(ctx, key); err != nil {
		return fmt.Errorf("mounts: %w", err)
	}
	if err := service.Commit(ctx, name, key, gcRoot); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if _, err := service.Stat(ctx, name); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	if err := service.Remove(ctx, name); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	return nil
}
