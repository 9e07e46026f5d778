-- Scripts that Envoy runs; scripts/gateway/listeners.py cuts this file at the lines of dashes.

---- translate: TorchServe's own errors, {"code", "type", "message"}, in the one form of all errors ----
local NAMES = { ["400"] = "bad_request", ["404"] = "not_found", ["405"] = "not_allowed", ["413"] = "too_large",
                ["500"] = "model_failed", ["503"] = "unavailable", ["507"] = "out_of_memory" }

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  if tonumber(status) < 400 or headers:get("x-model-version") then return end
  local body = handle:body(true)
  local text = body:getBytes(0, body:length())
  -- The message stays as TorchServe wrote it, escapes included.
  local message = text:match('"message"%s*:%s*"(.*)"%s*}%s*$')
  if not message then return end
  headers = handle:headers()  -- the former object ended when the body was waited for
  -- A worker that was killed: no matter how, the request was not to blame (WorkerThread.java says 413 after SIGKILL).
  if message:find("Worker died", 1, true) then
    status = "503"
    headers:replace(":status", status)
  end
  -- So says TorchServe of a full queue, too; to a version without workers the gateway sends nothing.
  if message:find("no worker to serve", 1, true) then
    local model = message:match('Model \\*"([%w._-]+)') or "MODEL"
    message = "the queue of this version is full: more is asked than its workers can answer. Try again later, or add "
      .. "a worker: marctl scale " .. model .. " VERSION WORKERS"
  end
  if status == "503" then headers:replace("retry-after", "1") end
  local name = NAMES[status] or "server_error"
  local length = body:setBytes('{"error":"' .. name .. '","detail":"' .. message .. '"}')
  headers:replace("content-length", tostring(length))
  headers:replace("content-type", "application/json")
end

---- metrics: the stack's figures, and in plain text Envoy's own behind them ----
function envoy_on_request(handle)
  local text = "text/plain; version=0.0.4; charset=utf-8"
  local function page(source, path, accept)
    local call = { [":method"] = "GET", [":path"] = path, [":authority"] = source, ["accept"] = accept }
    local headers, body = handle:httpCall(source, call, nil, 5000)
    return headers[":status"] == "200" and body, headers["content-type"]
  end
  local figures, kind = page("metrics", "/metrics", handle:headers():get("accept") or text)
  if figures and kind:find("openmetrics", 1, true) then
    handle:respond({ [":status"] = "200", ["content-type"] = kind }, figures)
    return
  end
  local own = page("admin", "/stats/prometheus?usedonly", text)
  if not own then
    handle:respond({ [":status"] = "503", ["content-type"] = "application/json", ["retry-after"] = "1" },
                   '{"error":"unavailable","detail":"the page is asked for too often at once; try again"}')
    return
  end
  handle:respond({ [":status"] = "200", ["content-type"] = text },
                 (figures or "# no figures from metrics\n") .. "\n" .. own)
end

---- health: each version's workers, by scripts/gateway/health.py, and its queue, of which TorchServe is asked ----
local MOST_QUEUES = 100  -- TorchServe is asked for one version after the other

function envoy_on_request(handle)
  local call = { [":method"] = "GET", [":path"] = "/workers", [":authority"] = "probes" }
  local _, workers = handle:httpCall("probes", call, nil, 5000)
  local rows, ready = {}, true
  for name, answering, routed in (workers or ""):gmatch("(%S+)=(%d+)( ?%w*)\n") do
    local text = ""
    if #rows < MOST_QUEUES then
      call = { [":method"] = "GET", [":path"] = "/models/" .. name, [":authority"] = "management" }
      local headers, body = handle:httpCall("management", call, nil, 5000)
      text = headers[":status"] == "200" and body or ""
    end
    local gets_traffic = routed ~= ""
    if gets_traffic and answering == "0" then ready = false end
    rows[#rows + 1] = string.format('{"model":"%s","version":"%s","routed":%s,"workers_ready":%s,"queue":%s}',
      name:match("^[^/]+"), name:match("[^/]+$"), tostring(gets_traffic), answering,
      text:match('"pendingRequests"%s*:%s*(%d+)') or "null")
  end
  handle:respond({ [":status"] = "200", ["content-type"] = "application/json" },
                 '{"status":"' .. (ready and "ready" or "not ready") .. '","versions":[' .. table.concat(rows, ",") .. "]}")
end

---- ready: whether each version with traffic has a worker, by scripts/gateway/health.py ----
function envoy_on_request(handle)
  local context = handle:filterContext()  -- ends with the first call
  local yes, no, code = context:get("yes"), context:get("no"), context:get("code")
  local call = { [":method"] = "GET", [":path"] = "/ready", [":authority"] = "probes" }
  local headers = handle:httpCall("probes", call, nil, 5000)
  local ready = headers[":status"] == "200"
  local head = { [":status"] = ready and "200" or code, ["content-type"] = "application/json" }
  if head[":status"] == "503" then head["retry-after"] = "1" end
  handle:respond(head, ready and yes or no)
end

---- grpc: the code of a gRPC answer, finer than what Envoy makes of the HTTP code ----
local CODES = { ["400"] = "3", ["404"] = "5", ["413"] = "8", ["422"] = "3", ["500"] = "13", ["501"] = "12", ["504"] = "4" }

function envoy_on_response(handle)
  local status = handle:headers():get("x-http-status")
  if not status then return end
  handle:headers():remove("x-http-status")
  if not CODES[status] then return end
  for _ in handle:bodyChunks() do end
  local trailers = handle:trailers()
  if trailers then trailers:replace("grpc-status", CODES[status]) end
end
