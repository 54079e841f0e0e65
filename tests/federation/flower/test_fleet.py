import threading

from sahfl.federation.flower.fleet import LIVE_S, Bell, Fleet


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def fleet_of(*sites):
    clock = Clock()
    fleet = Fleet(clock=clock)
    numbers = iter(range(100, 200))
    fleet.register({site: site.encode() for site in sites}, lambda key: next(numbers), revoked={})
    return fleet, clock, {seat.site: seat for seat in fleet.seats()}


def test_a_site_is_connected_as_long_as_it_was_heard_or_holds_a_poll():
    fleet, clock, seats = fleet_of("bern")
    bern = seats["bern"]
    assert not fleet.connected(bern)
    assert fleet.admit(bern, "one", "0.1.0")
    clock.now += LIVE_S - 1
    assert fleet.connected(bern)
    clock.now += 2
    assert not fleet.connected(bern)
    fleet.note_request(bern)
    with fleet.polling(bern):
        clock.now += 10 * LIVE_S
        assert fleet.connected(bern)
    assert fleet.connected(bern)


def test_a_poll_whose_connection_broke_makes_the_site_away_until_it_is_heard():
    fleet, _, seats = fleet_of("bern")
    fleet.admit(seats["bern"], "one", "0.1.0")
    fleet.lose(seats["bern"], "another process")
    assert fleet.connected(seats["bern"])
    fleet.lose(seats["bern"], "one")
    assert not fleet.connected(seats["bern"])
    fleet.note_request(seats["bern"])
    assert fleet.connected(seats["bern"])


def test_one_process_speaks_for_a_site_until_it_leaves_or_is_silent():
    fleet, clock, seats = fleet_of("bern")
    bern = seats["bern"]
    assert fleet.admit(bern, "one", "0.1.0")
    assert fleet.admit(bern, "one", "0.1.0")
    assert not fleet.admit(bern, "two", "0.1.0")
    fleet.leave(bern)
    assert fleet.admit(bern, "two", "0.1.0")
    clock.now += LIVE_S + 1
    assert fleet.admit(bern, "three", "0.1.0")


def test_how_long_a_site_is_away_counts_from_its_last_sign_or_from_the_server_s_start():
    fleet, clock, seats = fleet_of("bern", "graz")
    fleet.admit(seats["bern"], "one", "0.1.0")
    clock.now += 100
    assert fleet.away_s(seats["bern"]) == 100
    assert fleet.away_s(seats["graz"]) == 100
    fleet.note_request(seats["bern"])
    assert fleet.away_s(seats["bern"]) == 0
    assert fleet.missing(("graz", "bern")) == ["graz"]


def test_C07_a_key_that_is_gone_is_out_and_may_come_back_with_its_seat():
    fleet, _, seats = fleet_of("bern", "graz")
    fleet.admit(seats["graz"], "one", "0.1.0")
    assert fleet.register({"bern": b"bern"}, lambda key: 0, revoked={}) == ([], ["graz"])
    assert fleet.revoked() == ["graz"]
    assert not fleet.admit(seats["graz"], "one", "0.1.0")
    assert not fleet.of_key(b"graz").active
    assert fleet.register({"bern": b"bern", "graz": b"graz"}, lambda key: 0, revoked={}) == (["graz"], [])
    assert fleet.of_key(b"graz") is seats["graz"]
    assert fleet.revoked() == []


def test_a_renewed_key_takes_the_place_of_the_one_before():
    fleet, _, seats = fleet_of("bern")
    assert fleet.register({"bern": b"new"}, lambda key: 7, revoked={}) == (["bern"], [])
    assert [seat.node_id for seat in fleet.seats()] == [7]
    assert not seats["bern"].active
    assert fleet.of_node(7).site == "bern"
    assert len(fleet.everyone()) == 2


def test_a_site_that_is_revoked_from_the_start_has_a_node_and_may_not_connect():
    fleet, _, _ = fleet_of("bern")
    lists = {"keys": {"bern": b"bern"}, "revoked": {"graz": b"graz"}}
    assert fleet.register(enroll=lambda key: 7, **lists) == ([], [])
    assert fleet.register(enroll=lambda key: 8, **lists) == ([], [])
    assert fleet.revoked() == ["graz"]
    assert fleet.nodes() == {"bern": 100, "graz": 7}
    assert not fleet.of_node(7).active
    assert not fleet.admit(fleet.of_key(b"graz"), "one", "0.1.0")


def test_nobody_waits_for_a_revoked_site():
    fleet, _, _ = fleet_of("bern", "graz")
    assert fleet.missing(("bern", "graz")) == ["bern", "graz"]
    fleet.register({"bern": b"bern"}, lambda key: 7, revoked={"graz": b"graz"})
    assert fleet.missing(("bern", "graz")) == ["bern"]


def test_a_site_with_a_new_kit_after_its_revocation_is_reached_by_its_earlier_node():
    fleet, _, seats = fleet_of("bern", "graz")
    fleet.register({"bern": b"bern"}, lambda key: 7, revoked={"graz": b"graz"})
    assert fleet.of_node(seats["graz"].node_id) is seats["graz"]
    assert fleet.register({"bern": b"bern", "graz": b"new"}, lambda key: 7, revoked={}) == (["graz"], [])
    assert fleet.of_node(seats["graz"].node_id) is fleet.of_key(b"new")
    assert fleet.nodes() == {"bern": 100, "graz": 7}
    assert not seats["graz"].active


def test_a_bell_that_rang_before_is_heard_and_one_that_rings_wakes_a_waiting_thread():
    bell = Bell()
    bell.ring()
    bell.wait(60)
    thread = threading.Thread(target=bell.wait, args=(60,))
    thread.start()
    bell.ring()
    thread.join(30)
    assert not thread.is_alive()
